"""Turns the flat entries of all files into a Config: built-in values, then [defaults], profiles, the model's own table.

Owns precedence, merging and origins. A default that does not go with what is said more specifically does not apply.
Checks nothing: values marked INVALID count as not written, and rules.py checks relations between keys. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields
from typing import Any, Final

from msgspec import Struct

from accelerd.config.command import CommandSettings, of_preset
from accelerd.config.model import DEFAULTS, SECTIONS, Config, ModelSpec, Origin, Price, Sampling
from accelerd.config.positions import KeyPath
from accelerd.config.problems import Source
from accelerd.config.remotes import Remote
from accelerd.config.routes import route_of
from accelerd.config.variants import Variant
from accelerd.config.vllm import VllmSettings
from accelerd.config.walk import ConfigEntries, ConfigEntry

_NOT_SETTINGS: Final = ("profile", "variants")
CACHE_TYPES: Final = {"kv_cache_type": "cache_type", "draft_kv_cache_type": "draft_cache_type"}  # key → fields _k, _v
LISTS: Final = ("spec_type", "fit_target")  # one value stands for an array of one
# Which keys of [defaults] a model with these settings cannot have, beyond those that were found before.
Unfit = Callable[[ModelSpec, frozenset[str]], frozenset[str]]
EntryTable = Mapping[KeyPath, ConfigEntry]  # entries of one table, paths relative to it


class SettingsLayer(Struct, frozen=True):
    """One table that a model takes settings from."""

    label: str  # as in Origin.layer
    table: EntryTable
    path: tuple[str, ...] = ()  # of the table

    def settings(self) -> Iterator[tuple[str, ConfigEntry]]:
        """("context", …), ("sampling.temperature", …), ("env.HOME", …): what was written and is valid."""
        for path, entry in self.table.items():
            if entry.usable and path[0] not in _NOT_SETTINGS:
                if path[0] in CACHE_TYPES:
                    yield f"{CACHE_TYPES[str(path[0])]}_{path[1]}", entry
                else:
                    yield ".".join(map(str, path)), entry


class ConfigTables:
    """The entries of all files, by table."""

    def __init__(self, entries: ConfigEntries) -> None:
        self._tables: dict[KeyPath, dict[KeyPath, ConfigEntry]] = {}
        for path, entry in entries.items():
            depth = 2 if path and path[0] in ("engines", "models", "profiles", "routes", "remotes") else 1
            self._tables.setdefault(path[:depth], {})[path[depth:]] = entry
        self.profiles = self._named("profiles")
        self.models = self._named("models")
        self.routes = self._named("routes")
        self.remotes = self._named("remotes")
        self.unfit: dict[str, frozenset[str]] = {}  # by model: keys of [defaults] that do not apply to it

    def _named(self, section: str) -> dict[str, EntryTable]:
        return {str(path[1]): table for path, table in self._tables.items() if path[:1] == (section,) and path[1:]}

    def section(self, name: str) -> EntryTable:
        return self._tables.get(tuple(name.split(".")), {})

    def chosen(self, model: str) -> tuple[str, ...]:
        """The names in a model's `profile`, in order; they need not exist."""
        entry = self.models[model].get(("profile",))
        if entry is None or not entry.usable:
            return ()
        return (entry.value,) if isinstance(entry.value, str) else entry.value

    def layers(self, model: str) -> list[SettingsLayer]:
        """Where a model's settings come from, weakest first."""
        profiles = [
            SettingsLayer(f"profile {name}", self.profiles[name], ("profiles", name))
            for name in self.chosen(model)
            if name in self.profiles
        ]
        return [
            SettingsLayer("defaults", self.section("defaults"), DEFAULTS),
            *profiles,
            SettingsLayer("model", self.models[model]),
        ]


def resolve(tables: ConfigTables, sources: tuple[Source, ...], unfit: Unfit) -> Config:
    """The whole configuration; sound only if no problem was found."""
    origins: dict[str, Origin] = {}
    models = {name: _model(name, tables.layers(name), unfit) for name in tables.models}
    tables.unfit = {name: skipped for name, (_, skipped) in models.items()}
    return Config(
        **{
            name: type(getattr(Config, name))(**_settings(tables.section(section), section, section, origins))
            for section, name in SECTIONS.items()
        },
        models={name: spec for name, (spec, _) in models.items()},
        routes={
            name: route_of(name, _route_settings(table, f"routes.{name}", origins))
            for name, table in tables.routes.items()
        },
        remotes={name: _remote(name, table, origins) for name, table in tables.remotes.items()},
        sources=sources,
        origins=origins,
    )


def _remote(name: str, table: EntryTable, origins: dict[str, Origin]) -> Remote:
    settings = _settings(table, f"remotes.{name}", "remote", origins)
    headers: dict[str, str] = settings.pop("headers", {})
    return Remote(name, **settings, headers=tuple(sorted(headers.items())))


def _settings(table: EntryTable, name: str, layer: str, origins: dict[str, Origin]) -> dict[str, Any]:
    """What was written in a table. The only table inside one, performance.devices, becomes {slot: policy}."""
    values: dict[str, Any] = {}
    for path, entry in table.items():
        if entry.usable and path[0] not in _NOT_SETTINGS:
            if len(path) == 1:
                values[str(path[0])] = entry.value
            else:
                values.setdefault(str(path[0]), {})[str(path[1])] = entry.value
            origins[f"{name}.{'.'.join(map(str, path))}"] = Origin(layer, entry.file, entry.line)
    return values


def _route_settings(table: EntryTable, name: str, origins: dict[str, Origin]) -> dict[str, Any]:
    """The same of a route, with the tables in it as dictionaries."""
    values: dict[str, Any] = {"variants": _variants(table, f"{name}.", "route", origins)}
    for path, entry in table.items():
        if entry.usable and path[0] not in _NOT_SETTINGS:
            inner = values
            for key in path[:-1]:
                inner = inner.setdefault(str(key), {})
            inner[str(path[-1])] = entry.value
            origins[f"{name}.{'.'.join(map(str, path))}"] = Origin("route", entry.file, entry.line)
    return values


def _variants(table: EntryTable, prefix: str, layer: str, origins: dict[str, Origin]) -> tuple[Variant, ...]:
    """The variants of a model or a route. Their origins are at `prefix` and then "variants.NAME.KEY"."""
    found: dict[str, dict[str, Any]] = {}
    for path, entry in table.items():
        if path[:1] == ("variants",) and len(path) > 1:
            values = found.setdefault(str(path[1]), {"origins": ()})
            origin = Origin(layer, entry.file, entry.line)
            origins[f"{prefix}{'.'.join(map(str, path))}"] = origin
            if len(path) == 3 and entry.usable:
                values[str(path[2])] = entry.value
                values["origins"] += ((str(path[2]), str(origin)),)
    return tuple(Variant(name, **values) for name, values in found.items())


_SPEC_FIELDS: Final = frozenset(field.name for field in fields(ModelSpec))


def _model(name: str, layers: list[SettingsLayer], unfit: Unfit) -> tuple[ModelSpec, frozenset[str]]:
    """The model, and the keys of [defaults] that do not apply to it."""
    skipped: frozenset[str] = frozenset()
    spec = _spec(name, layers, skipped)
    while more := unfit(spec, skipped):
        skipped |= more
        spec = _spec(name, layers, skipped)
    return spec, skipped


def _spec(name: str, layers: list[SettingsLayer], skipped: Collection[str]) -> ModelSpec:
    values: dict[str, Any] = {}
    sampling: dict[str, Any] = {}
    command: dict[str, Any] = {}
    price: dict[str, float] = {}
    env: dict[str, str] = {}
    vllm: dict[str, Any] = {}
    inner_tables = {"sampling": sampling, "command": command, "vllm": vllm, "price": price, "env": env}
    origins: dict[str, Origin] = {}
    for layer in layers:
        for key, entry in layer.settings():
            if layer.path == DEFAULTS and key in skipped:
                continue
            table, _, inner = key.partition(".")
            origin = Origin(layer.label, entry.file, entry.line, table=layer.path)
            origins[key] = origin
            if inner:
                origins[table] = origin
                inner_tables[table][inner] = entry.value
            elif key in ("aliases", "hidden_aliases"):
                values[key] = tuple(dict.fromkeys(alias for alias in entry.value if alias != name))
            elif key in _SPEC_FIELDS:
                alone = key in LISTS and not isinstance(entry.value, tuple)
                values[key] = (entry.value,) if alone else entry.value
    if values.get("engine") == "vllm":
        command.setdefault("preset", "vllm")
    for inner, value in of_preset(command.get("preset")).items():
        if inner not in command:
            command[inner] = value
            origins[f"command.{inner}"] = Origin(f"preset {command['preset']}")
    return ModelSpec(
        name=name,
        **values,
        sampling=Sampling(**sampling),
        command=CommandSettings(**command),
        price=Price(**price),
        vllm=VllmSettings(**vllm),
        variants=_variants(layers[-1].table, "", "model", origins),
        env=tuple(sorted(env.items())),
        origins=origins,
    )
