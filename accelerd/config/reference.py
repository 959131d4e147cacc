"""docs/configuration.md, made from the JSON Schema: every key with what it takes, its built-in value and its meaning.

Pure. `python -m accelerd.config.reference` prints it; a test holds the file against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from accelerd.config import shape, units
from accelerd.config.jsonschema import json_schema
from accelerd.config.problems import value_text
from accelerd.config.show import toml
from accelerd.config.values import NAME

INTRODUCTION: Final = """\
# Configuration

accelerd reads `$XDG_CONFIG_HOME/accelerd/accelerd.toml` (`~/.config/accelerd/accelerd.toml`) and then
`accelerd.toml.d/*.toml` beside it, in the order of their names; what comes later wins, tables merge. `accelctl add`
writes such drop-ins; your own file is never rewritten.

`accelctl config check` finds every mistake at once, with file, line and key, also when accelerd is not running.
`accelctl config show` prints the result with the place each value came from. `accelctl config schema` prints a JSON
Schema: name it in your editor (taplo, Even Better TOML) and keys complete themselves.

After a change: `accelctl reload` or `systemctl --user reload accelerd`. Models whose process does not depend on what
changed go on untouched; changed ones finish their requests and are replaced; a broken file changes nothing and says so.

A model takes each setting from its own table, else from its profiles (`profile = "big"` or a list, the later wins),
else from `[defaults]`, else the built-in value below. `env` and `sampling` merge; everything else replaces.

```toml
[engines.llama-server]
binary = "~/llama.cpp/build/bin/llama-server"

[defaults]
flash_attention = true
idle_timeout = "15m"

[profiles.long]
context = 65536
kv_cache_type = "q8_0"

[models.qwen]
path = "~/models/Qwen3-30B-A3B-Q4_K_M.gguf"
profile = "long"
aliases = ["gpt-4o"]

[models.embed]
path = "~/models/bge-m3-Q8_0.gguf"
embeddings = true
pin = true
```
"""
SECTIONS: Final = {
    "ServerTable": ("[server]", ""),
    "SchedulerTable": ("[scheduler]", ""),
    "MemoryTable": ("[memory]", ""),
    "PerformanceTable": ("[performance]", ""),
    "DevicePerformanceTable": ('[performance.devices."0000:c1:00.0"]', ""),
    "DesktopTable": ("[desktop]", ""),
    "LlamaServerTable": ("[engines.llama-server]", ""),
    "FlmTable": ("[engines.flm]", ""),
    "LemonadeTable": ("[engines.lemonade]", ""),
    "LayerTable": ("[defaults], [profiles.NAME], [models.NAME]", ""),
    "ModelTable": ("[models.NAME] only", "LayerTable"),
    "SamplingTable": ("sampling = { … }", ""),
    "RouteTable": ("[routes.NAME]", ""),
}
SHORT: Final = {units.DURATION: "a duration", units.SIZE: "a size", NAME: "a name"}
TERMS: Final = f"""\
A *duration* is {units.DURATION.partition(": ")[2]}. A *size* is {units.SIZE.partition(": ")[2]}.
A *name* is {NAME.removeprefix("a name of ")}.
"""


Row = tuple[str, str, str, str]  # key, what it takes, built-in value as TOML, meaning


def reference() -> str:
    """The page, as Markdown."""
    parts = [INTRODUCTION, TERMS]
    for title, rows in tables():
        parts.append(f"## {title}\n\n| key | takes | built-in | meaning |\n|---|---|---|---|")
        for key, takes, default, meaning in rows:
            cells = (f"`{key}`", takes, f"`{default}`" if default else "", meaning)
            parts[-1] += "\n| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        parts[-1] += "\n"
    return "\n".join(parts)


def tables() -> Iterator[tuple[str, list[Row]]]:
    """Every table of the file: its title, and its keys."""
    definitions = json_schema()["$defs"]
    nodes: dict[str, shape.Node] = {}
    _collect(shape.document(), nodes)
    for name, (title, without) in SECTIONS.items():
        table = definitions[name]
        known = definitions[without]["properties"] if without else {}
        keys = (nodes[name].table or {}).items()
        schemas = table["properties"]
        yield title, [_row(key, schemas[key], node) for key, node in keys if key in schemas and key not in known]


def _row(key: str, schema: dict[str, Any], node: shape.Node) -> Row:
    default = schema.get("default", "")
    if default != "":
        default = toml(default) if isinstance(default, list) else value_text(default)
    takes = node.expects
    for long, short in SHORT.items():
        takes = takes.replace(long, short)
    return key, takes, default, schema.get("description", "")


def _collect(node: shape.Node, into: dict[str, shape.Node]) -> None:
    if node.struct:
        into[node.struct] = node
    for child in (node.table or {}).values():
        _collect(child, into)
    if node.names:
        _collect(node.names[1], into)


if __name__ == "__main__":
    print(reference(), end="")
