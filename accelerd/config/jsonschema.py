"""The JSON Schema of accelerd.toml, for editors: completion, descriptions, ranges and built-in values.

msgspec generates it from the structs that keys.py makes of the settings classes. Pure.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from accelerd.config.shape import Document

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """Draft 2020-12. Every key is optional and none may be added."""
    schema = msgspec.json.schema(Document)
    definitions: dict[str, Any] = schema["$defs"]
    for table in definitions.values():
        table.pop("required", None)
        table["additionalProperties"] = False
    # A drop-in may add to a model that another file names: one file alone need not have path or model, but never both.
    definitions["ModelTable"]["not"] = {"required": ["path", "model"]}
    return {"$schema": DIALECT, "title": "accelerd.toml", **schema}
