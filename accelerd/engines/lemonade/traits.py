"""The tasks of a Lemonade model, from its recipe and labels. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from accelerd.config.model import ModelSpec
from accelerd.engines.base import Task, Traits
from accelerd.engines.flm.catalogue import tag_of
from accelerd.engines.lemonade.catalogue import DIRECT, Catalogue, LemonadeModel

GENERATES: Final[tuple[Task, ...]] = ("chat", "completions")
# Label → tasks of the model.
DEPLOYMENTS: Final[Mapping[str, tuple[Task, ...]]] = {
    "embeddings": ("embeddings",), "embedding": ("embeddings",), "reranking": ("rerank",), "rerank": ("rerank",),
    "transcription": ("transcription",), "audio": ("transcription",), "realtime-transcription": ("transcription",),
    "image": (), "tts": (), "audio-generation": (), "classification": (), "3d": (),
}  # fmt: skip
UNKNOWN: Final[frozenset[Task]] = frozenset(("embeddings", "rerank", "transcription", "tools", "vision"))
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


def traits(spec: ModelSpec, catalogue: Catalogue, *, own: bool = True) -> Traits:
    """From what is known now. `own`: accelerd runs the server, so requests can go directly to backends."""
    known, recipe = catalogue.of(spec.model or ""), catalogue.recipe(spec)
    direct = own and (recipe in DIRECT if known.direct is None else known.direct)
    tasks = _tasks(spec, recipe, known)
    if not (known.recipe or spec.embeddings or spec.rerank or spec.transcription):
        tasks |= UNKNOWN  # not listed by a server yet: allow whatever it may support
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
        device=device(recipe, known),
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
    if llama:
        found |= {"messages", "responses"}
    elif direct:
        why_not |= dict.fromkeys(("messages", "responses"), f"{recipe} supports only chat completions")
    else:
        found.add("responses")
        why_not["messages"] = f"Lemonade's {recipe or 'server'} supports only chat completions"
    return found, why_not


def _wire_name(spec: ModelSpec, recipe: str, known: LemonadeModel, direct: bool) -> str | None:
    """The model name for requests: flm unloads its model if a request names another one; llama-server ignores the name.

    Must be known before the load, because the first request is prepared then.
    """
    if not direct:
        return spec.model
    return (known.checkpoint or tag_of(spec.model or "")) if recipe == "flm" else None
