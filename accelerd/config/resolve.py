"""Turns the flat entries of all files into a Config: built-in values, then [defaults], profiles, the model's own table.

Owns precedence, merging and origins. Judges nothing: values marked INVALID count as not written, and what must hold
between keys is rules.py. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from accelerd.config.model import (
    Config,
    DesktopSettings,
    FlmSettings,
    LemonadeSettings,
    LlamaServerSettings,
    MemorySettings,
    ModelSpec,
    Origin,
    PerformanceSettings,
    Route,
    Sampling,
    SchedulerSettings,
    ServerSettings,
)
from accelerd.config.walk import Entries, Entry

_NOT_SETTINGS: Final = ("profile",)
Table = Mapping[tuple[str | int, ...], Entry]  # entries of one table, paths relative to it


@dataclass(frozen=True)
class Layer:
    """One table that a model takes settings from."""

    label: str  # as in Origin.layer
    table: Table

    def settings(self) -> Iterator[tuple[str, Entry]]:
        """("context", …), ("sampling.temperature", …), ("env.HOME", …): what was written and is valid."""
        for path, entry in self.table.items():
            if entry.usable and path[0] not in _NOT_SETTINGS:
                if path[0] == "kv_cache_type":
                    yield f"cache_type_{path[1]}", entry
                else:
                    yield ".".join(map(str, path)), entry


class Tables:
    """The entries of all files, by table."""

    def __init__(self, entries: Entries) -> None:
        self._sections: dict[str, dict[tuple[str | int, ...], Entry]] = {}
        self.profiles: dict[str, dict[tuple[str | int, ...], Entry]] = {}
        self.models: dict[str, dict[tuple[str | int, ...], Entry]] = {}
        self.routes: dict[str, dict[tuple[str | int, ...], Entry]] = {}
        named = {"profiles": self.profiles, "models": self.models, "routes": self.routes}
        for path, entry in entries.items():
            section = str(path[0]) if path else ""
            if section in named and len(path) > 1:
                table = named[section].setdefault(str(path[1]), {})
                table[path[2:]] = entry
            elif section == "engines" and len(path) > 1:
                self._sections.setdefault(f"engines.{path[1]}", {})[path[2:]] = entry
            else:
                self._sections.setdefault(section, {})[path[1:]] = entry

    def section(self, name: str) -> Table:
        return self._sections.get(name, {})

    def chosen(self, model: str) -> tuple[str, ...]:
        """The names in a model's `profile`, in order; they need not exist."""
        entry = self.models[model].get(("profile",))
        if entry is None or not entry.usable:
            return ()
        return (entry.value,) if isinstance(entry.value, str) else entry.value

    def layers(self, model: str) -> list[Layer]:
        """Where a model's settings come from, weakest first."""
        profiles = [
            Layer(f"profile {name}", self.profiles[name]) for name in self.chosen(model) if name in self.profiles
        ]
        return [Layer("defaults", self.section("defaults")), *profiles, Layer("model", self.models[model])]


def resolve(tables: Tables, files: tuple[str, ...]) -> Config:
    """The whole configuration; sound only if no problem was found."""
    origins: dict[str, Origin] = {}
    return Config(
        server=ServerSettings(**_settings(tables, "server", origins)),
        scheduler=SchedulerSettings(**_settings(tables, "scheduler", origins)),
        memory=MemorySettings(**_settings(tables, "memory", origins)),
        performance=_performance(tables, origins),
        desktop=DesktopSettings(**_settings(tables, "desktop", origins)),
        llama_server=LlamaServerSettings(**_settings(tables, "engines.llama-server", origins)),
        flm=FlmSettings(**_settings(tables, "engines.flm", origins)),
        lemonade=LemonadeSettings(**_settings(tables, "engines.lemonade", origins)),
        models={name: _model(name, tables.layers(name)) for name in tables.models},
        routes={name: _route(name, table, origins) for name, table in tables.routes.items()},
        files=files,
        origins=origins,
    )


def _settings(tables: Tables, section: str, origins: dict[str, Origin]) -> dict[str, Any]:
    values = {}
    for key, entry in Layer(section, tables.section(section)).settings():
        values[key] = entry.value
        origins[f"{section}.{key}"] = Origin(section, entry.file, entry.line)
    return values


def _performance(tables: Tables, origins: dict[str, Origin]) -> PerformanceSettings:
    values = _settings(tables, "performance", origins)
    devices = {}
    for path, entry in tables.section("performance").items():
        if len(path) == 3 and path[0] == "devices" and entry.usable:
            devices[str(path[1])] = entry.value
    plain = {key: value for key, value in values.items() if not key.startswith("devices.")}
    return PerformanceSettings(**plain, devices=devices)


def _route(name: str, table: Table, origins: dict[str, Origin]) -> Route:
    values = {}
    for key, entry in Layer("route", table).settings():
        values[key] = entry.value
        origins[f"routes.{name}.{key}"] = Origin("route", entry.file, entry.line)
    return Route(name, tuple(values.get("models", ())), values.get("description", ""))


_SPEC_FIELDS: Final = frozenset(field.name for field in fields(ModelSpec))


def _model(name: str, layers: list[Layer]) -> ModelSpec:
    values: dict[str, Any] = {}
    sampling: dict[str, Any] = {}
    env: dict[str, str] = {}
    origins: dict[str, Origin] = {}
    for layer in layers:
        for key, entry in layer.settings():
            table, _, inner = key.partition(".")
            origin = Origin(layer.label, entry.file, entry.line)
            origins[key] = origin
            if inner:
                origins[table] = origin
                (sampling if table == "sampling" else env)[inner] = entry.value
            elif key in _SPEC_FIELDS:
                values[key] = entry.value
    return ModelSpec(
        name=name, **values, sampling=Sampling(**sampling), env=tuple(sorted(env.items())), origins=origins
    )
