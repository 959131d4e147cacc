"""What is known of a remote and of its models, as of the last time that it was asked. Pure data, and its readers.

Routes read it to choose; nobody asks a remote in order to answer a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct, field
from msgspec.structs import replace

from accelerd.engines.base import Task
from accelerd.engines.http import HttpError

# What OpenAI's API has, and most servers do: a remote that cannot says so itself.
USUAL: Final[Mapping[str, frozenset[Task]]] = {
    "openai": frozenset(("chat", "completions", "embeddings", "tools", "vision")),
    "anthropic": frozenset(("messages", "tools", "vision")),
    "ollama": frozenset(("chat", "completions", "embeddings", "tools", "vision", "ollama")),
    "accelerd": frozenset(("chat", "completions", "embeddings", "tools", "vision", "messages", "responses")),
}
KNOWN: Final[frozenset[Task]] = frozenset((
    "chat", "completions", "embeddings", "rerank", "transcription", "speech", "images", "messages", "responses",
    "tools", "vision", "audio",
))  # fmt: skip
# Ollama's words for what a model can do.
OF_OLLAMA: Final[Mapping[str, frozenset[Task]]] = {
    "completion": frozenset(("chat", "completions", "ollama")),
    "tools": frozenset(("tools",)),
    "vision": frozenset(("vision",)),
    "embedding": frozenset(("embeddings",)),
}


class RemoteModel(Struct, frozen=True):
    """A model of a remote. None and empty: the remote does not say."""

    name: str
    tasks: frozenset[Task] = frozenset()
    context: int | None = None
    loaded: bool | None = None
    queue: int | None = None  # requests that wait there or are answered
    displaces: tuple[str, ...] = ()  # models that would have to leave for it
    device: str = ""
    size: int | None = None  # bytes of its files


class RemoteState(Struct, frozen=True):
    """A remote, as it was when it was asked last."""

    asked: float | None = None  # monotonic seconds; None: never
    reachable: bool | None = None  # None: not known
    trouble: str = ""  # why it is not, in plain words, for everybody
    detail: str = ""  # more of it, for the operator alone
    models: Mapping[str, RemoteModel] = field(default_factory=dict)  # by name

    def model(self, name: str) -> RemoteModel | None:
        """Ollama writes qwen3 as qwen3:latest."""
        return self.models.get(name) or self.models.get(f"{name}:latest")


def listed(said: Any) -> dict[str, RemoteModel]:
    """What GET /v1/models has answered. HttpError."""
    data = said.get("data") if isinstance(said, dict) else None
    if not isinstance(data, list):
        raise HttpError("its list of models is none")
    found = [_model(one) for one in data if isinstance(one, dict) and isinstance(one.get("id"), str)]
    return {one.name: one for one in found}


def _model(entry: dict[str, Any]) -> RemoteModel:
    tasks, status = entry.get("capabilities"), entry.get("status")
    if isinstance(tasks, dict):  # as llama-server and others have it: {"vision": true}
        tasks = [name for name, able in tasks.items() if able is True]
    word = status.get("value") if isinstance(status, dict) else None
    context = next((entry[key] for key in ("context_length", "max_model_len") if _number(entry.get(key))), None)
    displaces = entry.get("displaces")
    return RemoteModel(
        name=entry["id"],
        tasks=KNOWN & {task for task in tasks if isinstance(task, str)} if isinstance(tasks, list) else frozenset(),
        context=context,
        loaded=word == "loaded" if isinstance(word, str) else None,
        queue=entry["queue"] if _number(entry.get("queue")) else None,
        displaces=tuple(one for one in displaces if isinstance(one, str)) if isinstance(displaces, list) else (),
        device=entry["device"] if isinstance(entry.get("device"), str) else "",
    )


def _number(value: Any) -> bool:
    return type(value) is int and value >= 0


def ollama_list(tags: Any, running: Any) -> dict[str, RemoteModel]:
    """What Ollama's /api/tags and /api/ps have answered. HttpError."""
    there, loaded = _entries(tags), _entries(running)
    return {name: _tagged(name, entry, loaded=name in loaded) for name, entry in there.items()}


def _entries(said: Any) -> dict[str, dict[str, Any]]:
    """By name."""
    models = said.get("models") if isinstance(said, dict) else None
    if not isinstance(models, list):
        raise HttpError("its list of models is none")
    named = [(one.get("name") or one.get("model"), one) for one in models if isinstance(one, dict)]
    return {name: entry for name, entry in named if isinstance(name, str)}


def _tagged(name: str, entry: dict[str, Any], *, loaded: bool) -> RemoteModel:
    """Newer ones say in the list what others say in /api/show alone."""
    details = entry.get("details")
    context = details.get("context_length") if isinstance(details, dict) else None
    return RemoteModel(
        name,
        _tasks(entry.get("capabilities")),
        context if _number(context) and context else None,
        loaded,
        size=entry["size"] if _number(entry.get("size")) else None,
    )


def _tasks(words: Any) -> frozenset[Task]:
    known = [word for word in words if isinstance(word, str) and word in OF_OLLAMA] if isinstance(words, list) else []
    return frozenset(task for word in known for task in OF_OLLAMA[word])


def ollama_shown(model: RemoteModel, said: Any) -> RemoteModel:
    """The same with what /api/show has answered."""
    words = said.get("capabilities") if isinstance(said, dict) else None
    info = said.get("model_info") if isinstance(said, dict) else None
    contexts = [
        value
        for key, value in (info.items() if isinstance(info, dict) else ())
        if key.endswith(".context_length") and _number(value)
    ]
    return replace(model, tasks=_tasks(words), context=contexts[0] if contexts else None)
