"""The load request for a Lemonade Server, from the settings of a model. Pure.

Options are never saved in the server (`save_options`); every load contains them. Options that Lemonade sets itself are
refused in extra_args.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Flag, fail

# Options of llama-server that Lemonade sets itself, and the setting to use instead.
ITS_OWN: Final[Mapping[str, str]] = {
    "-m": "model", "--model": "model", "--port": "", "--host": "", "--api-key": "", "--metrics": "",
    "--ctx-size": "context", "-c": "context", "-ngl": "", "--n-gpu-layers": "", "--gpu-layers": "",
    "--jinja": "", "--no-jinja": "", "--mmproj": "", "--embeddings": "", "--embedding": "",
    "--reranking": "", "--rerank": "", "--device": "", "-dev": "",
}  # fmt: skip
# Options that it passes on to flm.
FLM_KNOWS: Final = (
    "--pmode", "--prefill-chunk-len", "--img-pre-resize", "--socket", "--q-len", "--preemption",
)  # fmt: skip
SAMPLING: Final = (
    ("temperature", "--temp"), ("top_p", "--top-p"), ("top_k", "--top-k"), ("min_p", "--min-p"),
    ("repeat_penalty", "--repeat-penalty"), ("presence_penalty", "--presence-penalty"),
    ("frequency_penalty", "--frequency-penalty"), ("seed", "--seed"), ("max_tokens", "--predict"),
)  # fmt: skip
NO_CONTEXT: Final = frozenset(("whispercpp", "moonshine", "kokoro", "sd-cpp"))


class LemonadeLoad(Struct, frozen=True):
    """The body of POST /load, with reasons."""

    body: Mapping[str, Any]
    flags: tuple[Flag, ...]
    warnings: tuple[str, ...] = ()


def build(spec: ModelSpec, recipe: str, trained: int | None) -> LemonadeLoad:
    """`trained`: the model's trained context in tokens, if known. AccelError('model_failed')."""
    body: dict[str, Any] = {"model_name": spec.model, "save_options": False}
    flags = [Flag(f"model_name={spec.model}", str(spec.origin("model")), "Lemonade's name of the model")]
    if recipe not in NO_CONTEXT:
        size = trained if spec.tokens is None else spec.tokens * (spec.parallel if recipe == "llamacpp" else 1)
        if size is not None:
            body["ctx_size"] = size
            flags.append(Flag(f"ctx_size={size}", str(spec.origin("context")), "tokens of context"))
    arguments: list[Flag] = []
    warnings = []
    if recipe == "llamacpp":
        arguments = _llama(spec)
    elif spec.extra_args and recipe != "flm":
        warnings.append(f"extra_args has no effect: Lemonade supports none for {recipe}")
    for argument in spec.extra_args if recipe in ("llamacpp", "flm") else ():
        _check(spec, recipe, argument)
        arguments.append(Flag(_quoted(spec, argument), str(spec.origin("extra_args")), "set in extra_args"))
    if arguments:
        key = "flm_args" if recipe == "flm" else "llamacpp_args"
        body[key] = " ".join(flag.text for flag in arguments)
        flags += [Flag(f"{key}: {flag.text}", flag.source, flag.reason) for flag in arguments]
    if spec.env:
        warnings.append("env has no effect: all models use the environment of the Lemonade Server")
    return LemonadeLoad(body, tuple(flags), tuple(warnings))


def _llama(spec: ModelSpec) -> list[Flag]:
    """The settings as options that Lemonade passes on to llama-server."""
    found: list[Flag] = []

    def add(field: str, text: str, reason: str) -> None:
        found.append(Flag(text, str(spec.origin(field)), reason))

    if spec.parallel > 1:
        add("parallel", f"-np {spec.parallel}", "parallel requests")
    if spec.flash_attention is not None:
        add("flash_attention", f"-fa {spec.flash_attention}", "flash attention")
    if spec.mmap is False:
        add("mmap", "--no-mmap", "read the file instead of mapping it")
    for field, name in (("batch", "-b"), ("ubatch", "-ub"), ("threads", "-t")):
        if (value := getattr(spec, field)) is not None:
            add(field, f"{name} {value}", field)
    for field, name in (("cache_type_k", "-ctk"), ("cache_type_v", "-ctv")):
        if (value := getattr(spec, field)) is not None:
            add(field, f"{name} {value}", "type of the KV cache")
    for field, name in SAMPLING:
        if (value := getattr(spec.sampling, field)) is not None:
            add("sampling", f"{name} {value}", "default for requests")
    return found


def _check(spec: ModelSpec, recipe: str, argument: str) -> None:
    """AccelError for an option that Lemonade refuses, or that conflicts with accelerd's own."""
    name = argument.partition("=")[0]
    if recipe == "flm" and name.startswith("-") and name not in FLM_KNOWS:
        fail(Cause.REFUSED, f"extra_args: Lemonade does not pass {name} on to flm, only {', '.join(FLM_KNOWS)}")
    if recipe == "llamacpp" and name in ITS_OWN:
        instead = f"; set {ITS_OWN[name]} of {spec.name} instead" if ITS_OWN[name] else ""
        fail(Cause.REFUSED, f"extra_args: {name} is not allowed, because Lemonade sets it itself{instead}")


def _quoted(spec: ModelSpec, argument: str) -> str:
    """One argument of a line that Lemonade splits at spaces outside double quotes."""
    if '"' in argument or "\\" in argument or "\n" in argument:
        fail(
            Cause.REFUSED,
            f"extra_args: an argument of {spec.name} contains a quote or backslash, which Lemonade does not support",
        )
    return f'"{argument}"' if not argument or any(one.isspace() for one in argument) else argument
