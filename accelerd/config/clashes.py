"""Settings of one model that do not go together, or have no effect beside the others.

Each check yields the field, what is wrong, and the field that it does not go with. rules.py reports them at the place
where they are written. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from accelerd.config import units
from accelerd.config.command import PLACEHOLDERS, placeholders, presets
from accelerd.config.model import BUILT_IN, DEFAULTS, FINE_SETTINGS, ModelSpec

Clash = tuple[str, str, str]  # a setting, what is wrong with it, and the one that it does not go with ("": it alone)


def clashes(spec: ModelSpec, wrong: Collection[str | int] = ()) -> Iterator[Clash]:
    """`wrong`: keys with an invalid value."""
    yield from of_another_engine(spec)
    if spec.elsewhere:
        return
    yield from _consistent(spec)
    yield from _at_home(spec, wrong)
    yield from _of_engine(spec, wrong)


def unfit(spec: ModelSpec, skipped: frozenset[str]) -> frozenset[str]:
    """The keys of [defaults] that do not go with what was chosen for this model. `skipped`: already found.

    A contradiction within [defaults] remains a mistake.
    """

    def default(field: str) -> bool:
        return spec.origin(field).table == DEFAULTS

    def chosen(field: str) -> bool:
        return field in skipped or field == "engine" or (not default(field) and spec.origin(field) != BUILT_IN)

    found = set()
    for field, _, other in clashes(spec):
        for one, against in ((field, other), (other, field)):
            if one and against and one != "engine" and default(one) and chosen(against):
                found.add(one)
    return frozenset(found)


def _consistent(spec: ModelSpec) -> Iterator[Clash]:
    if spec.batch is not None and spec.ubatch is not None and spec.ubatch > spec.batch:
        yield "ubatch", f"expected at most batch = {spec.batch} ({spec.origin('batch')}), got {spec.ubatch}", "batch"
    if spec.embeddings and spec.rerank:
        where = spec.origin("embeddings")
        text = f"a model can have embeddings or rerank, not both; embeddings is set, too ({where})"
        yield "rerank", text, "embeddings"
    if spec.flash_attention == "off" and spec.cache_type_v not in (None, "f32", "f16", "bf16"):
        text = f"a quantised V cache requires flash attention, which is off ({spec.origin('flash_attention')})"
        yield "cache_type_v", text, "flash_attention"
    yield from _divided(spec)
    for one, other in BOTH_ARE_TOO_MANY:
        if _is_set(spec, one) and _is_set(spec, other):
            yield one, f"set either {one} or {other}, not both; {other} is set, too ({spec.origin(other)})", other
    if spec.fit:
        for field in NOT_WITH_FIT:
            if _is_set(spec, field) and getattr(spec, field) not in ("auto", "layer"):
                text = f"llama-server fits nothing where this is set; fit is on ({spec.origin('fit')})"
                yield field, text, "fit"
    if spec.mmproj_device is not None and spec.mmproj_offload is False:
        text = f"the projector is on no GPU with mmproj_offload = false ({spec.origin('mmproj_offload')})"
        yield "mmproj_device", text, "mmproj_offload"
    if spec.draft_min is not None and spec.draft_max is not None and spec.draft_min > spec.draft_max:
        text = f"expected at most draft_max = {spec.draft_max} ({spec.origin('draft_max')}), got {spec.draft_min}"
        yield "draft_min", text, "draft_max"


# Pairs of which the program would follow one, and settings that make it leave out --fit.
BOTH_ARE_TOO_MANY = (("n_cpu_moe", "cpu_moe"), ("rope_freq_scale", "rope_scale"))
NOT_WITH_FIT = (
    "gpu_layers", "split_mode", "tensor_split", "override_tensor", "cpu_moe", "n_cpu_moe", "n_cpu_ffn",
)  # fmt: skip


def _is_set(spec: ModelSpec, field: str) -> bool:
    return getattr(spec, field) not in (None, False, ())


def _divided(spec: ModelSpec) -> Iterator[Clash]:
    """How several GPUs share a model."""
    where = spec.origin("gpus")
    for field in ("main_gpu", "mmproj_device"):
        slot = getattr(spec, field)
        if slot is not None and spec.gpus and slot not in spec.gpus:
            yield field, f"expected one of gpus = [{', '.join(spec.gpus)}] ({where}), got {slot}", "gpus"
    if spec.tensor_split is None:
        return
    if not spec.gpus:
        yield "tensor_split", "set gpus = […], too: the GPUs that the numbers are for, in the same order", ""
    elif len(spec.tensor_split) != len(spec.gpus):
        text = f"expected a number for each of the {len(spec.gpus)} gpus ({where}), got {len(spec.tensor_split)}"
        yield "tensor_split", text, "gpus"
    elif not any(spec.tensor_split):
        yield "tensor_split", "expected at least one number above 0", ""
    if spec.split_mode == "none":
        text = f'one GPU has all of the model with split_mode = "none" ({spec.origin("split_mode")})'
        yield "tensor_split", text, "split_mode"


OWNED = ("llama-server", "flm", "lemonade", "command", "vllm")  # engines whose processes are here
# Of the settings of any model, what does something where a server elsewhere runs it.
OF_REMOTE_MODELS = frozenset(
    ("engine", "model", "description", "aliases", "hidden_aliases", "unlisted", "remote", "capabilities", "context",
     "concurrency", "idle_timeout", "price")
)  # fmt: skip
# Which engines read a setting, where not all of those here do. Lemonade passes some on to its llama-servers.
READ_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("gpu_layers", "mmproj", "draft_model", "chat_template_file", "prompt_cache", *FINE_SETTINGS),
        ("llama-server",),
    ),
    **dict.fromkeys(
        ("cache_type_k", "cache_type_v", "flash_attention", "mmap", "batch", "ubatch", "threads"),
        ("llama-server", "lemonade"),
    ),
    "gpus": ("llama-server", "command", "vllm"),
    "sampling": ("llama-server", "lemonade"),
    "embeddings": ("llama-server", "flm", "lemonade"),
    "rerank": ("llama-server", "flm", "lemonade"),
    "transcription": ("llama-server", "flm", "lemonade"),  # of llama-server `_of_engine` says more
    "command": ("command", "vllm"),
    "vllm": ("vllm",),
    "sleep_timeout": ("vllm",),
    "remote": ("remote",),
    "capabilities": ("remote",),
}
SAY_THE_ENGINE = ("command", "vllm", "remote")  # whoever writes these has forgotten `engine`
TOLD = (*SAY_THE_ENGINE, "path")  # these are mistakes, not warnings


def of_another_engine(spec: ModelSpec) -> Iterator[Clash]:
    for field in SAY_THE_ENGINE:
        if _written(spec, field) and (text := unread(spec, field)):
            yield field, text, "engine"


def unread(spec: ModelSpec, field: str) -> str:
    """What to say of a setting that the model's engine does not read; empty: it reads it."""
    readers = READ_BY.get(field, OWNED)
    if spec.engine in readers or (spec.elsewhere and field in OF_REMOTE_MODELS):
        return ""
    if readers is OWNED:
        return f'has no effect with engine = "remote" ({spec.origin("engine")}), whose models run elsewhere'
    words = [f'"{one}"' for one in readers]
    named = f"{', '.join(words[:-1])} or {words[-1]}" if words[1:] else words[0]
    return f'has no effect with engine = "{spec.engine}" ({spec.origin("engine")}); it is read with engine = {named}'


def _of_engine(spec: ModelSpec, wrong: Collection[str | int]) -> Iterator[Clash]:
    """What an engine does not support."""
    where = spec.origin("engine")
    if spec.engine == "llama-server":
        if spec.transcription:
            text = f"llama-server transcribes if `mmproj` is a projector for audio, without this setting ({where})"
            yield "transcription", text, "engine"
        return
    if spec.engine in ("command", "vllm"):
        if not {"preset", "argv", "api", "environment"} & set(wrong):
            yield from _of_command(spec)
        return
    if spec.contained:
        yield "home", f"{spec.engine} does not run in a container ({where})", "engine"
    if spec.engine == "flm" and spec.rerank:
        yield "rerank", f"flm does not support reranking ({where})", "engine"
    if spec.engine == "flm" and spec.parallel > 1:
        yield "parallel", f"flm processes one request at a time ({where})", "engine"


def _of_command(spec: ModelSpec) -> Iterator[Clash]:
    command = spec.command
    if command.preset is not None and command.preset not in presets():
        return  # the rules say that
    if spec.engine == "vllm" and command.preset != "vllm":
        yield "command", 'engine = "vllm" has a preset of its own', "engine"
        return
    if not command.argv or not command.api:
        known = ", ".join(f'"{name}"' for name in presets())
        missing = "argv" if not command.argv else "api"
        yield "engine", f"set command.{missing}, or command.preset to one of {known}", ""
    elif len(command.placeholders & {"port", "socket"}) != 1:
        yield "command", "argv needs {port} or {socket}: where the program shall listen", ""
    elif placeholders(command.argv[0]):
        yield "command", f"the first word of argv is a program, not {command.argv[0]}: write its name or path", ""
    if (key := command.has("context")) and not isinstance(spec.context, int):
        yield "command", f"set context = … to a number, too: {{context}} in {key} is replaced by it", ""
    if command.key_env is not None and "key_file" in command.placeholders:
        yield "command", "set either key_env or {key_file} in argv, not both", ""
    if command.probe_body is not None and command.probe_path is None:
        yield "command", "probe_body has no effect without probe_path", ""


NAMED_HOMES = ("toolbox", "distrobox", "container")  # need `container`
IMAGE_HOMES = ("podman", "docker")  # need `image`
UNIT_SETTINGS = ("memory_max", "memory_high", "cpu_weight", "io_class", "tasks_max")


def _at_home(spec: ModelSpec, wrong: Collection[str | int]) -> Iterator[Clash]:
    """What a home requires and does not support."""
    home, where = spec.home, spec.origin("home")
    if home in NAMED_HOMES and spec.container is None and "container" not in wrong:
        what = "an existing container" if home == "container" else f"a {home}"
        yield "home", f'set container = "…", the name of {what}', ""
    if spec.container is not None and home == "auto":
        yield "container", 'set home = "toolbox", "distrobox" or "container", too', "home"
    elif spec.container is not None and home not in NAMED_HOMES:
        yield "container", f'has no effect with home = "{home}" ({where})', "home"
    if home in IMAGE_HOMES and spec.image is None and "image" not in wrong:
        yield "home", f'home = "{home}" requires image = "…"', ""
    for field in ("image", "devices", "mounts"):
        if getattr(spec, field) and home not in IMAGE_HOMES:
            yield field, f'requires home = "podman" or "docker"; home is "{home}" ({where})', "home"
    if spec.memory_max is not None:
        text = f"expected at most memory_max = {units.format_size(spec.memory_max)} ({spec.origin('memory_max')})"
        for field in ("memory_high", "memory"):
            if (getattr(spec, field) or 0) > spec.memory_max:
                yield field, text, ""


def without_effect(spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """Settings that require a systemd unit, and settings that the engine does not support."""
    for field in spec.origins:
        usual = "." not in field and field not in TOLD
        if usual and _written(spec, field) and (text := unread(spec, field)):
            yield field, text
    for variant in spec.variants:
        if variant.system is not None and not _talks(spec):
            text = (
                "has no effect: a system prompt is for chats, messages and responses, and the model does none of these"
            )
            yield f"variants.{variant.name}.system", text
    if spec.elsewhere:
        return
    if spec.engine == "llama-server":
        for field, needed, what in WITHOUT_EFFECT_ALONE:
            if _written(spec, field) and not needed(spec):
                yield field, f"has no effect without {what}"
    if spec.engine in ("command", "vllm"):
        yield from _not_filled(spec)
    if spec.home == "child":
        for field in UNIT_SETTINGS:
            if _written(spec, field):
                yield field, f'has no effect with home = "child" ({spec.origin("home")})'
        if spec.survive and _written(spec, "survive"):
            yield "survive", f'a model with home = "child" ({spec.origin("home")}) always stops with accelerd'


def _talks(spec: ModelSpec) -> bool:
    """Could it answer requests that may have a system prompt? Only what is declared counts."""
    declared = spec.capabilities if spec.elsewhere else spec.command.api
    if declared:
        return not {"chat", "messages", "responses", "ollama"}.isdisjoint(declared)
    return not (spec.embeddings or spec.rerank or spec.transcription)


def _not_filled(spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """Placeholders where they are none."""
    for name, value in spec.env:
        if known := set(placeholders(value)) & set(PLACEHOLDERS):
            yield f"env.{name}", f"{{{min(known)}}} is not replaced here; write the variable in command.environment"
    for word in spec.extra_args:
        if known := set(placeholders(word)) & set(PLACEHOLDERS):
            yield "extra_args", f"{{{min(known)}}} is not replaced here; write the argument in command.argv"


def _fits_context(spec: ModelSpec) -> bool:
    return spec.fit and spec.context is None


def _drafts(spec: ModelSpec) -> bool:
    return bool(spec.draft_model or spec.spec_type or spec.model)  # a model of a hub may bring one


# Settings of llama-server that do something only beside others: when, and what those are.
WITHOUT_EFFECT_ALONE: tuple[tuple[str, Callable[[ModelSpec], bool], str], ...] = (
    ("main_gpu", lambda spec: spec.split_mode in ("none", "row"), 'split_mode = "none" or "row"'),
    ("fit_target", lambda spec: spec.fit, "fit = true"),
    ("fit_ctx", _fits_context, 'fit = true and context = "model"'),
    *(
        (field, _drafts, "draft_model or spec_type")
        for field in (
            "draft_max", "draft_min", "draft_p_min", "draft_gpu_layers", "draft_cache_type_k", "draft_cache_type_v",
        )
    ),
    *(
        (field, lambda spec: bool(spec.mmproj or spec.model), "mmproj")
        for field in ("mmproj_offload", "mmproj_device")
    ),
)  # fmt: skip


def _written(spec: ModelSpec, field: str) -> bool:
    """For this model, that is: [defaults] are for those that can have them."""
    return field in spec.origins and getattr(spec, field) is not None and spec.origin(field).table != DEFAULTS
