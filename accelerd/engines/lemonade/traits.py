"""What a model of a Lemonade Server can be asked for: from its recipe and its labels, as data. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from accelerd.config.model import ModelSpec
from accelerd.engines.base import Task, Traits
from accelerd.engines.flm import names
from accelerd.engines.lemonade.catalogue import DIRECT, Catalogue, Known

GENERATES: Final[tuple[Task, ...]] = ("chat", "completions")
# The one label of a model that says what it is for → its tasks.
DEPLOYMENTS: Final[Mapping[str, tuple[Task, ...]]] = {
    "embeddings": ("embeddings",), "embedding": ("embeddings",), "reranking": ("rerank",), "rerank": ("rerank",),
    "transcription": ("transcription",), "audio": ("transcription",), "realtime-transcription": ("transcription",),
    "image": (), "tts": (), "audio-generation": (), "classification": (), "3d": (),
}  # fmt: skip
UNKNOWN: Final[frozenset[Task]] = frozenset(("embeddings", "rerank", "transcription", "tools", "vision"))
# Recipes that do one thing whatever the labels say.
SINGLE: Final[Mapping[str, tuple[Task, ...]]] = {
    "whispercpp": ("transcription",), "moonshine": ("transcription",), "kokoro": (), "sd-cpp": (),
}  # fmt: skip
# Families that compute on an NPU, and the device where no server has told.
FAMILIES: Final = frozenset(("flm", "ryzenai-llm"))
PATHS: Final = {"/v1/rerank": "/v1/reranking"}  # as the server itself spells it
NAMES: Final[Mapping[Task, str]] = {
    "chat": "it is no chat model", "completions": "it completes no text",
    "embeddings": "it makes no embeddings: ask a model with the label embeddings",
    "rerank": "it ranks nothing: ask a model with the label reranking",
    "transcription": "it hears nothing: ask a model of the recipe whispercpp or flm with the label transcription",
}  # fmt: skip


def traits(spec: ModelSpec, catalogue: Catalogue, *, own: bool = True) -> Traits:
    """By what is known now. `own`: in a server that accelerd runs, past which its backends are asked."""
    known, recipe = catalogue.of(spec.model or ""), catalogue.recipe(spec)
    direct = own and (recipe in DIRECT if known.direct is None else known.direct)
    tasks = _tasks(spec, recipe, known)
    if not (known.recipe or spec.embeddings or spec.rerank or spec.transcription):
        tasks |= UNKNOWN  # no server has told of it yet: nothing is refused that it may do
    why_not: dict[str, str] = {task: f"{spec.name}: {why}" for task, why in NAMES.items() if task not in tasks}
    if "chat" in tasks:
        extra, refused = _beyond(spec, recipe, known, direct)
        tasks |= extra
        why_not |= {task: why for task, why in refused.items() if task not in tasks}
    return Traits(
        tasks=frozenset(tasks),
        why_not=why_not,
        wire_name=_wire_name(spec, recipe, known, direct),
        paths={} if direct else PATHS,
        labels=known.labels,
        recipe=recipe,
        device=device(recipe, known),
    )


def device(recipe: str, known: Known) -> str:
    """The kind of what it computes on; "" where that is not known before it is loaded."""
    if recipe in FAMILIES or known.device.split(" ")[-1:] == ["npu"]:
        return "npu"
    return known.device.split(" ")[0] or ("gpu" if recipe in ("llamacpp", "vllm", "sd-cpp") else "")


def _tasks(spec: ModelSpec, recipe: str, known: Known) -> set[Task]:
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


def _beyond(spec: ModelSpec, recipe: str, known: Known, direct: bool) -> tuple[set[Task], dict[str, str]]:
    """What a chat model can do beside chatting."""
    found: set[Task] = set()
    why_not: dict[str, str] = {}
    llama = recipe == "llamacpp" and direct
    for task, label in (("tools", "tool-calling"), ("vision", "vision")):
        if label in known.labels or (llama and (task == "tools" or not known.labels)):
            found.add("tools" if task == "tools" else "vision")
        else:
            why_not[task] = f"{spec.name}: Lemonade gives it no label {label}"
    if llama:
        found |= {"messages", "responses"}
    elif direct:
        why_not |= dict.fromkeys(("messages", "responses"), f"{spec.name}: {recipe} knows chat completions only")
    else:
        found.add("responses")
        why_not["messages"] = f"{spec.name}: Lemonade's {recipe or 'server'} is asked with chat completions"
    return found, why_not


def _wire_name(spec: ModelSpec, recipe: str, known: Known, direct: bool) -> str | None:
    """An flm that is asked for another name than its own throws its model out for that one; a llama-server minds none.

    Known before the load, since the first request is put before that.
    """
    if not direct:
        return spec.model
    return (known.checkpoint or names.tag_of(spec.model or "")) if recipe == "flm" else None
