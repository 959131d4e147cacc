"""One Lemonade model as configured: its tasks, its device and its memory, from what servers have listed.

Never raises and contacts no server. A size that no server has listed is guessed from the name until it is measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from accelerd.config.model import ModelSpec
from accelerd.devices.model import Device, usable
from accelerd.engines.base import Task, Traits
from accelerd.engines.flm.catalogue import guessed_size, tag_of
from accelerd.engines.lemonade.catalogue import DIRECT, Catalogue
from accelerd.engines.lemonade.client import LemonadeModel, bare_name
from accelerd.memory.model import RAM, Claim, Forecast, MemoryRequirement, Shared, in_ram

GENERATES: Final[tuple[Task, ...]] = ("chat", "completions")
# Label → tasks of the model.
DEPLOYMENTS: Final[Mapping[str, tuple[Task, ...]]] = {
    "embeddings": ("embeddings",), "embedding": ("embeddings",), "reranking": ("rerank",), "rerank": ("rerank",),
    "transcription": ("transcription",), "audio": ("transcription",), "realtime-transcription": ("transcription",),
    "image": (), "tts": (), "audio-generation": (), "classification": (), "3d": (),
}  # fmt: skip
UNKNOWN: Final[frozenset[Task]] = frozenset(("embeddings", "rerank", "transcription", "tools", "vision", "audio"))
# Recipes with fixed tasks, whatever the labels.
SINGLE: Final[Mapping[str, tuple[Task, ...]]] = {
    "whispercpp": ("transcription",), "moonshine": ("transcription",), "kokoro": (), "sd-cpp": (),
}  # fmt: skip
# Recipes that run on the NPU.
FAMILIES: Final = frozenset(("flm", "ryzenai-llm"))
PATHS: Final = {"/v1/rerank": "/v1/reranking"}  # the server's path
NAMES: Final[Mapping[Task, str]] = {
    "chat": "it does not support chat", "completions": "it does not support completions",
    "embeddings": "it does not support embeddings; use a model with the label embeddings",
    "rerank": "it does not support reranking; use a model with the label reranking",
    "transcription": "it does not support transcription; use a model with the label transcription",
}  # fmt: skip
ROOM: Final = 1.1  # factor on the size of the files for cache and buffers


def traits(
    spec: ModelSpec, catalogue: Catalogue, *, own: bool = True, devices: Sequence[Device] | None = None
) -> Traits:
    """From what is known now. `own`: accelerd runs the server, so requests can go directly to backends.

    `devices`: of this machine; None: unknown.
    """
    known, recipe = catalogue.of(spec.model or ""), catalogue.recipe(spec)
    direct = own and (recipe in DIRECT if known.direct is None else known.direct)
    tasks = _tasks(spec, recipe, known)
    if not (known.recipe or spec.embeddings or spec.rerank or spec.transcription):
        tasks |= UNKNOWN  # not listed by a server yet: allow whatever it may support
    kind = device(recipe, known)
    if kind == "gpu" and devices is not None and not usable(devices):
        kind = "cpu"  # Lemonade calls all but one of its llama-servers so, whatever they compute with
    why_not: dict[str, str] = {task: why for task, why in NAMES.items() if task not in tasks}
    if "chat" in tasks:
        extra, refused = _beyond(recipe, known, direct)
        tasks |= extra
        why_not |= {task: why for task, why in refused.items() if task not in tasks}
    return Traits(
        tasks=frozenset(tasks),
        why_not=why_not,
        wire_name=_wire_name(spec, recipe, known, direct),
        paths={} if direct else PATHS,
        labels=known.labels,
        recipe=recipe,
        device=kind,
        context=spec.tokens or known.context,
    )


def device(recipe: str, known: LemonadeModel) -> str:
    """The kind of its device; "" if unknown before the load."""
    if recipe in FAMILIES or known.device.split(" ")[-1:] == ["npu"]:
        return "npu"
    return known.device.split(" ")[0] or ("gpu" if recipe in ("llamacpp", "vllm", "sd-cpp") else "")


def _tasks(spec: ModelSpec, recipe: str, known: LemonadeModel) -> set[Task]:
    if recipe in SINGLE:
        return set(SINGLE[recipe])
    for label in known.labels:
        if label in DEPLOYMENTS:
            return set(DEPLOYMENTS[label])
    if spec.embeddings:
        return {"embeddings"}
    if spec.rerank:
        return {"rerank"}
    return {"transcription"} if spec.transcription else set(GENERATES)


def _beyond(recipe: str, known: LemonadeModel, direct: bool) -> tuple[set[Task], dict[str, str]]:
    """Additional tasks of a chat model."""
    found: set[Task] = set()
    why_not: dict[str, str] = {}
    llama = recipe == "llamacpp" and direct
    for task, label in (("tools", "tool-calling"), ("vision", "vision")):
        if label in known.labels or (llama and (task == "tools" or not known.labels)):
            found.add("tools" if task == "tools" else "vision")
        else:
            why_not[task] = f"it does not have Lemonade's label {label}"
    if llama and not known.labels:
        found.add("audio")
    if llama:
        found |= {"messages", "responses"}
    elif direct:
        why_not |= dict.fromkeys(("messages", "responses"), f"{recipe} supports only chat completions")
    else:
        found |= {"messages", "responses"}  # the server translates the former
    return found, why_not


def _wire_name(spec: ModelSpec, recipe: str, known: LemonadeModel, direct: bool) -> str | None:
    """The model name for requests: flm unloads its model if a request names another one; llama-server ignores the name.

    Must be known before the load, because the first request is prepared then.
    """
    if not direct:
        return spec.model
    return (known.checkpoint or tag_of(spec.model or "")) if recipe == "flm" else None


def forecast(spec: ModelSpec, devices: Sequence[Device], catalogue: Catalogue, url: str | None) -> Forecast:
    """`url`: of a server that is already running; None: accelerd's own, whose backends are asked directly."""
    known, recipe = catalogue.of(spec.model or ""), catalogue.recipe(spec)
    size, source = _size(spec, known)
    host, declared = url or "Lemonade Server", spec.memory is not None
    place = Shared(host, bare_name(spec.model or spec.name), cuts=url is None)

    def one(need: MemoryRequirement) -> Forecast:
        return Forecast((need,), _key(spec, known) if known.size and not declared else "", shared=place)

    npu = next((one for one in devices if one.kind == "npu" and one.problem is None), None)
    kind = device(recipe, known)
    # The device of whisper is known only after a load; until then assume the NPU.
    if npu is not None and (kind == "npu" or (recipe == "whispercpp" and not known.device)):
        # The NPU uses main memory and no GPU memory.
        claim = Claim(npu.id, recipe, _kind(spec, catalogue), host=host)
        return one(MemoryRequirement({RAM: size}, source, (npu.id,), claims=(claim,), declared=declared))
    gpus = usable(devices)
    if kind == "gpu" and gpus and spec.gpu_layers != 0:
        wanted = [gpu for gpu in gpus if gpu.id in (spec.gpus or ())]
        # Lemonade selects the GPU itself; assume the first one that it would use.
        chosen = wanted[:1] or [gpu for gpu in gpus if gpu.apu is not True][:1] or list(gpus[:1])
        return one(MemoryRequirement({chosen[0].id: size}, source, (chosen[0].id,), declared=declared))
    return one(in_ram(size, source, declared=declared))


def _size(spec: ModelSpec, known: LemonadeModel) -> tuple[int, str]:
    if spec.memory is not None:
        return spec.memory, f"declared: {spec.origin('memory')}"
    if known.size:
        return int(known.size * ROOM), "estimated from the size that Lemonade lists"
    name = spec.model or ""
    return int(guessed_size(name) * ROOM), f"guessed from its name: Lemonade lists no size for {name}"


def _kind(spec: ModelSpec, catalogue: Catalogue) -> Literal["llm", "asr", "embed"]:
    tasks = traits(spec, catalogue).tasks
    return "asr" if "transcription" in tasks else "embed" if "embeddings" in tasks else "llm"


def _key(spec: ModelSpec, known: LemonadeModel) -> str:
    """The key of measurements: the model and its settings."""
    said = (spec.model, spec.tokens, spec.parallel, spec.cache_type_k, spec.cache_type_v, spec.ubatch, spec.extra_args)
    return hashlib.sha256(repr((said, known.size, known.recipe)).encode()).hexdigest()
