"""The JSON Schema of accelerd.toml, for editors: completion, descriptions, ranges and built-in values.

Made from schema.py by msgspec; the defaults are read from model.py, so neither can drift. Pure.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import msgspec

from accelerd.config import shape
from accelerd.config.model import (
    DesktopSettings,
    LlamaServerSettings,
    MemorySettings,
    ModelSpec,
    PerformanceSettings,
    SchedulerSettings,
    ServerSettings,
)
from accelerd.config.schema import Document
from accelerd.config.show import written

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_SETTINGS: Final = {
    "ServerTable": ServerSettings,
    "SchedulerTable": SchedulerSettings,
    "MemoryTable": MemorySettings,
    "PerformanceTable": PerformanceSettings,
    "DesktopTable": DesktopSettings,
    "LlamaServerTable": LlamaServerSettings,
    "LayerTable": ModelSpec,
    "ModelTable": ModelSpec,
}


def json_schema() -> dict[str, Any]:
    """Draft 2020-12. Every key is optional and none may be added."""
    schema = msgspec.json.schema(Document)
    definitions: dict[str, Any] = schema["$defs"]
    shapes = dict(_shapes(shape.document()))
    for name, table in definitions.items():
        table.pop("required", None)
        table["additionalProperties"] = False
        settings = _SETTINGS.get(name)
        if settings is not None:
            _defaults(table["properties"], settings, shapes[name])
    # A drop-in may add to a model that another file names: one file alone need not have path or model, but never both.
    definitions["ModelTable"]["not"] = {"required": ["path", "model"]}
    return {"$schema": DIALECT, "title": "accelerd.toml", **schema}


def _defaults(properties: dict[str, Any], settings: type[Any], nodes: dict[str, shape.Node]) -> None:
    for field in dataclasses.fields(settings):
        if field.name in properties and field.default and isinstance(field.default, (bool, int, float, str, tuple)):
            properties[field.name]["default"] = written(nodes[field.name], field.default)


def _shapes(node: shape.Node) -> Any:
    """(struct's name, keys) of every table below and including `node`."""
    if node.table is not None:
        if node.struct:
            yield node.struct, node.table
        for child in node.table.values():
            yield from _shapes(child)
    if node.names is not None:
        yield from _shapes(node.names[1])
