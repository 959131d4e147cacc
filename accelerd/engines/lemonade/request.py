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
from accelerd.engines.llama_server.features import Features

# Options of llama-server that Lemonade sets itself, or that would undo what it or accelerd sets, and the setting to use
# instead. From its sources: llamacpp_server.cpp of each version.
ITS_OWN: Final[Mapping[str, str]] = {
    "-m": "model", "--model": "model", "-hf": "model", "--hf-repo": "model", "-mr": "model", "--hf-file": "model",
    "-mf": "model", "--port": "", "--host": "", "--api-key": "", "--api-key-file": "", "--ctx-size": "context",
    "-c": "context", "--jinja": "", "--no-jinja": "", "--mmproj": "", "-mm": "", "--mmproj-url": "", "-mmu": "",
    "--no-mmproj": "", "--mmproj-auto": "", "--no-mmproj-auto": "", "--embeddings": "", "--embedding": "",
    "--reranking": "", "--rerank": "",
}  # fmt: skip
DEVICE: Final = ("--device", "-dev")
LAYERS: Final = ("-ngl", "--gpu-layers", "--n-gpu-layers")
DRAFT: Final = ("--model-draft", "-md", "--spec-draft-model")
PROJECTOR: Final = ("--mmproj-offload", "--no-mmproj-offload")
# options, the first version that sets them, the first one that does not any more
ITS_OWN_AT_TIMES: Final = (
    (LAYERS, (), (10, 8)),
    (DEVICE, (10, 6), None),
    (("--metrics",), (10, 7), None),
    (DRAFT, (10, 10), None),
    (PROJECTOR, (), (11, 6)),
)
LOAD_MODE_SINCE: Final = (11, 6)  # its own llama-servers know --load-mode instead of --no-mmap
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


def build(
    spec: ModelSpec, recipe: str, trained: int | None, server: tuple[int, ...] = (), llama: Features | None = None
) -> LemonadeLoad:
    """`trained`: the model's trained context in tokens, if known; `server`: the server's version, (): unknown.

    `llama`: the llama-server that runs it, where that is known. AccelError('model_failed').
    """
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
        arguments = _llama(spec, server, llama)
    elif spec.extra_args and recipe != "flm":
        warnings.append(f"extra_args has no effect: Lemonade supports none for {recipe}")
    if recipe == "llamacpp":
        for argument in spec.extra_args:
            _check(spec, argument, server)
    for argument in spec.extra_args if recipe == "llamacpp" else _flm(spec) if recipe == "flm" else ():
        arguments.append(Flag(_quoted(spec, argument), str(spec.origin("extra_args")), "set in extra_args"))
    if arguments:
        key = "flm_args" if recipe == "flm" else "llamacpp_args"
        body[key] = " ".join(flag.text for flag in arguments)
        flags += [Flag(f"{key}: {flag.text}", flag.source, flag.reason) for flag in arguments]
    if spec.env:
        warnings.append("env has no effect: all models use the environment of the Lemonade Server")
    return LemonadeLoad(body, tuple(flags), tuple(warnings))


def _llama(spec: ModelSpec, server: tuple[int, ...], llama: Features | None) -> list[Flag]:
    """The settings as options that Lemonade passes on to llama-server."""
    found: list[Flag] = []
    names = {argument.partition("=")[0] for argument in spec.extra_args}

    def add(field: str, text: str, reason: str) -> None:
        found.append(Flag(text, str(spec.origin(field)), reason))

    if spec.parallel > 1:
        add("parallel", f"-np {spec.parallel}", "parallel requests")
    if spec.flash_attention is not None:
        add("flash_attention", f"-fa {spec.flash_attention}", "flash attention")
    if spec.mmap is False:
        old = server and server < LOAD_MODE_SINCE if llama is None else llama.find("--load-mode", "-lm") is None
        text = "--no-mmap" if old else "--load-mode none"
        add("mmap", text, "read the file instead of mapping it")
    for field, name in (("batch", "-b"), ("ubatch", "-ub"), ("threads", "-t")):
        if (value := getattr(spec, field)) is not None:
            add(field, f"{name} {value}", field)
    for field, name in (("cache_type_k", "-ctk"), ("cache_type_v", "-ctv")):
        if (value := getattr(spec, field)) is not None:
            add(field, f"{name} {value}", "type of the KV cache")
    # Else its answers carry the path of the file.
    if llama is not None and llama.find("--alias") and not names & {"--alias", "-a"} and not _UNQUOTABLE & {*spec.name}:
        found.append(Flag(f"--alias {_word(spec.name)}", "built-in", "answers carry the configured name"))
    for field, name in SAMPLING:
        if (value := getattr(spec.sampling, field)) is not None:
            add("sampling", f"{name} {value}", "default for requests")
    return found


def _check(spec: ModelSpec, argument: str, server: tuple[int, ...]) -> None:
    """AccelError for an option that Lemonade refuses, or that conflicts with accelerd's own."""
    name = argument.partition("=")[0]
    own = name in ITS_OWN or any(
        name in names and (not server or server >= since) and not (until and (not server or server >= until))
        for names, since, until in ITS_OWN_AT_TIMES
    )
    if own:
        instead = f"; set {ITS_OWN[name]} of {spec.name} instead" if ITS_OWN.get(name) else ""
        fail(Cause.REFUSED, f"extra_args: {name} is not allowed, because Lemonade sets it itself{instead}")


def _flm(spec: ModelSpec) -> list[str]:
    """The arguments for flm as Lemonade takes them: name and value, each a word of its own."""
    words: list[str] = []
    for argument in spec.extra_args:
        name, equals, value = argument.partition("=")
        if name.startswith("-") and name not in FLM_KNOWS:
            fail(Cause.REFUSED, f"extra_args: Lemonade does not pass {name} on to flm, only {', '.join(FLM_KNOWS)}")
        words += [name, value] if equals and name in FLM_KNOWS else [argument]
    return words


_UNQUOTABLE: Final = frozenset('"\\\n')


def _quoted(spec: ModelSpec, argument: str) -> str:
    """One argument of a line that Lemonade splits at spaces outside double quotes."""
    if _UNQUOTABLE & {*argument}:
        fail(
            Cause.REFUSED,
            f"extra_args: an argument of {spec.name} contains a quote or backslash, which Lemonade does not support",
        )
    return _word(argument)


def _word(text: str) -> str:
    return f'"{text}"' if not text or any(one.isspace() for one in text) else text
