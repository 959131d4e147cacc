"""What a reload changes, by name of model.

Pure. Says which models may keep their process; draining and replacing them is the scheduler's.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from accelerd.config.model import Config, ModelSpec, sections


class ConfigDiff(Struct, frozen=True):
    """Names of models, in the order of the new configuration (`removed`: of the old one)."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    relaunch: tuple[str, ...] = ()  # the running process no longer fits its settings
    updated: tuple[str, ...] = ()  # other settings changed: the process stays
    unchanged: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()  # "server.listen", "routes.auto": keys outside models that changed

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.relaunch or self.updated or self.settings)

    def as_dict(self) -> dict[str, list[str]]:
        return {name: list(names) for name, names in asdict(self).items()}


def diff(old: Config, new: Config) -> ConfigDiff:
    """Compares two configurations; a model under another name is another model."""
    groups: dict[str, list[str]] = {"added": [], "relaunch": [], "updated": [], "unchanged": []}
    for name, spec in new.models.items():
        groups[_kind(old, new, old.models.get(name), spec)].append(name)
    return ConfigDiff(
        removed=tuple(name for name in old.models if name not in new.models),
        settings=tuple(_settings(old, new)),
        **{kind: tuple(names) for kind, names in groups.items()},
    )


def _kind(old: Config, new: Config, before: ModelSpec | None, after: ModelSpec) -> str:
    if before is None:
        return "added"
    if before.launch_key() != after.launch_key() or _engine_key(old, before) != _engine_key(new, after):
        return "relaunch"
    return "unchanged" if before == after else "updated"


def _engine_key(config: Config, spec: ModelSpec) -> tuple[Any, ...]:
    """What the model's process takes from its engine's own table."""
    match spec.engine:
        case "llama-server":
            return (spec.binary or config.llama_server.binary, config.llama_server.transport)
        case "flm":
            return (spec.binary or config.flm.binary,)
        case "remote":
            return (config.remotes.get(spec.remote or ""),)
        case _:
            return (config.lemonade,)


def _settings(old: Config, new: Config) -> list[str]:
    routes = [f"routes.{name}" for name in {**old.routes, **new.routes} if old.routes.get(name) != new.routes.get(name)]
    remotes = [
        f"remotes.{name}" for name in {**old.remotes, **new.remotes} if old.remotes.get(name) != new.remotes.get(name)
    ]
    return [*routes, *remotes] + [
        f"{section}.{field.name}"
        for (section, before), (_, after) in zip(sections(old), sections(new), strict=True)
        for field in fields(before)
        if getattr(before, field.name) != getattr(after, field.name)
    ]
