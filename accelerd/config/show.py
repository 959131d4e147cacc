"""The resolved configuration as TOML or JSON, each value with the place where it was set.

For `accelctl config show`. Reads a Config and the schema's shape only. Must never show a value of `env`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from accelerd.config import shape
from accelerd.config.clashes import OF_REMOTE_MODELS
from accelerd.config.keys import in_toml
from accelerd.config.model import BUILT_IN, FINE_SETTINGS, Config, ModelSpec, Origin, Route, sections
from accelerd.config.positions import KeyPath
from accelerd.config.problems import key_text
from accelerd.config.resolve import CACHE_TYPES
from accelerd.config.shape import SchemaNode
from accelerd.config.variants import Variant

HIDDEN: Final = "***"
NOT_SHOWN_EMPTY: Final = frozenset(
    {"path", "model", "description", "mmproj", "draft_model", "gpus", "group", "remote", "capabilities", *FINE_SETTINGS}
)
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class SettingValue(NamedTuple):
    """One setting as it is written in TOML; `value` is None if it is not set."""

    key: str  # "context", "sampling.temperature"
    value: Any
    origin: Origin


def show(config: Config) -> str:
    """TOML text with a comment on every value. It loads again, except that the values of env are hidden."""
    out = [f"# {_comment(file)}" for file in config.files] or ["# no configuration file: built-in values"]
    for header, values in _tables(config):
        out += ["", f"[{header}]"]
        for key, value, origin in values:
            out.append(f"# {key}: not set" if value is None else f"{key} = {toml(value)}  # {_comment(str(origin))}")
    return "\n".join(out) + "\n"


def show_dict(config: Config) -> dict[str, Any]:
    """The same for JSON: {"files": […], "tables": {"models.qwen": {"context": {"value", "layer", "file", "line"}}}}."""
    tables = {}
    for header, values in _tables(config):
        tables[header] = {
            key: {"value": value, "layer": origin.layer, "file": origin.file, "line": origin.line}
            for key, value, origin in values
        }
    return {"files": list(config.files), "tables": tables}


def _tables(config: Config) -> Iterator[tuple[str, list[SettingValue]]]:
    root = shape.document().table or {}
    for section, settings in sections(config):
        name, _, engine = section.partition(".")
        node = (root[name].table or {})[engine] if engine else root[name]
        keys = {key: child for key, child in (node.table or {}).items() if child.names is None}
        written = {key: in_toml(child.show, getattr(settings, key)) for key, child in keys.items()}
        yield section, [_setting(config, section, key, value) for key, value in written.items()]
    for slot, policy in config.performance.devices.items():
        yield (
            key_text(("performance", "devices", slot)),
            [_setting(config, f"performance.devices.{slot}", "policy", policy)],
        )
    models = root["models"].names
    for name, spec in config.models.items():
        table = (models[1].table if models else None) or {}
        yield key_text(("models", name)), list(_model(table, spec))
        yield from _variants(table["variants"], ("models", name), spec.variants, spec.origins, "")
    routes = root["routes"].names
    for name, route in config.routes.items():
        table = (routes[1].table if routes else None) or {}
        yield (
            key_text(("routes", name)),
            [_setting(config, f"routes.{name}", key, value) for key, value in _written(table, route, Route(""))],
        )
        yield from _variants(table["variants"], ("routes", name), route.variants, config.origins, f"routes.{name}.")
    remotes = root["remotes"].names
    for name, remote in config.remotes.items():
        nodes = (remotes[1].table if remotes else None) or {}
        written = {key: in_toml(node.show, getattr(remote, key)) for key, node in nodes.items() if node.names is None}
        shown = [_setting(config, f"remotes.{name}", key, value) for key, value in written.items() if value is not None]
        hidden = [_setting(config, f"remotes.{name}", f"headers.{one}", HIDDEN) for one, _ in remote.headers]
        yield key_text(("remotes", name)), [*shown, *hidden]


def _written(table: dict[str, SchemaNode], settings: Any, usual: Any) -> Iterator[tuple[str, Any]]:
    """What a table has; of the tables in it only what is not as usual. Variants have tables of their own."""
    for key, child in table.items():
        if key == "variants":
            continue
        value, standard = getattr(settings, key), getattr(usual, key)
        if child.table is not None:
            if value != standard:
                yield from ((f"{key}.{inner}", found) for inner, found in _inner(child.table, value, standard))
        elif value not in ((), "", None):
            yield key, in_toml(child.show, value)


def _inner(table: dict[str, SchemaNode], settings: Any, usual: Any) -> Iterator[tuple[str, Any]]:
    for key, child in table.items():
        value = getattr(settings, key)
        if value != getattr(usual, key):
            yield key, dataclasses.asdict(value) if child.table is not None else in_toml(child.show, value)


def _variants(
    node: SchemaNode, owner: KeyPath, variants: Sequence[Variant], origins: Mapping[str, Origin], prefix: str
) -> Iterator[tuple[str, list[SettingValue]]]:
    """The variants of a model or a route; `prefix`: of their origins."""
    keys = (node.names[1].table if node.names else None) or {}
    for variant in variants:
        said = f"{prefix}variants.{variant.name}"
        yield (
            key_text((*owner, "variants", variant.name)),
            [
                SettingValue(key, in_toml(child.show, value), origins.get(f"{said}.{key}", BUILT_IN))
                for key, child in keys.items()
                if (value := getattr(variant, key)) not in (None, (), "", False)
            ],
        )


def _setting(config: Config, table: str, key: str, value: Any) -> SettingValue:
    return SettingValue(key, value, config.origins.get(f"{table}.{key}", BUILT_IN))


def _model(table: dict[str, SchemaNode], spec: ModelSpec) -> Iterator[SettingValue]:
    # What the model is comes first.
    first = ("path", "model", "description", "aliases")
    for key in (*first, *(key for key in table if key not in first)):
        match key:
            case "profile" | "variants":  # already taken into account in every value
                continue
            case _ if spec.elsewhere and key not in OF_REMOTE_MODELS:
                continue
            case "idle_timeout" if spec.elsewhere and spec.idle_after is None:
                continue
            case _ if key in CACHE_TYPES:
                for half in ("k", "v"):
                    name = f"{CACHE_TYPES[key]}_{half}"
                    if (written := getattr(spec, name)) is not None or name not in NOT_SHOWN_EMPTY:
                        yield SettingValue(f"{key}.{half}", written, spec.origin(name))
            case "sampling" | "price":
                settings, usual = getattr(spec, key), getattr(ModelSpec, key)
                for field in dataclasses.fields(settings):
                    value = getattr(settings, field.name)
                    if value != getattr(usual, field.name):
                        yield SettingValue(f"{key}.{field.name}", value, spec.origin(f"{key}.{field.name}"))
            case "command" | "vllm" if spec.engine != key:
                continue
            case "command" | "vllm":
                settings = getattr(spec, key)
                for field in dataclasses.fields(settings):
                    value = in_toml(None, getattr(settings, field.name))
                    if value not in (None, []):
                        yield SettingValue(f"{key}.{field.name}", value, spec.origin(f"{key}.{field.name}"))
            case "env":
                for name, _ in spec.env:
                    yield SettingValue(f"{key}.{name}", HIDDEN, spec.origin(f"{key}.{name}"))
            case _ if key in NOT_SHOWN_EMPTY and not getattr(spec, key):
                continue
            case _:
                yield SettingValue(key, in_toml(table[key].show, getattr(spec, key)), spec.origin(key))


def toml(value: Any) -> str:
    """One value on one line of TOML."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            # JSON's escapes are TOML's, but TOML also escapes DEL.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{key} = {toml(child)}" for key, child in value.items()) + "}"
        case _:
            return repr(value)


def _comment(text: str) -> str:
    return _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
