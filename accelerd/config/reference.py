"""Generates docs/configuration.md from the schema: every key with its type, default and meaning.

Pure. `python -m accelerd.config.reference` prints the page; a test compares it with the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from accelerd.config import shape, units
from accelerd.config.problems import value_text
from accelerd.config.show import toml
from accelerd.config.values import NAME

INTRODUCTION: Final = """\
# Configuration

accelerd reads `$XDG_CONFIG_HOME/accelerd/accelerd.toml` (`~/.config/accelerd/accelerd.toml`) and then the drop-ins
`accelerd.toml.d/*.toml` in the same directory, in the order of their names. Tables are merged; later values take
precedence. `accelctl add` writes drop-ins; accelerd never changes your own file.

`accelctl config check` reports all mistakes at once, with file, line and key, even if accelerd is not running.
`accelctl config show` prints the resulting configuration and where each value was set. `accelctl config schema` prints
a JSON Schema for completion in editors (taplo, Even Better TOML).

To apply a change, run `accelctl reload` or `systemctl --user reload accelerd`. Models that the change does not affect
keep running. Affected models finish their requests and are restarted. If the files contain a mistake, nothing changes
and the mistake is reported. If accelerd finds a mistake when it starts, it uses the last configuration without any,
which it keeps in `~/.local/state/accelerd`, and `accelctl status` says so first.

accelerd looks for each setting of a model in the model's own table, then in its profiles (`profile = "big"`, or a list
in which later profiles take precedence), then in `[defaults]`, and finally uses the default listed below. `env` and
`sampling` are merged; all other settings are replaced. A default that a model cannot have, such as `home = "toolbox"`
for a model on the NPU, does not apply to it.

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
    "PriceTable": ("[models.NAME.price]", ""),
    "LoraAdapterTable": ("lora = [{ … }]", ""),
    "CommandTable": ("[models.NAME.command]", ""),
    "VllmTable": ("[models.NAME.vllm]", ""),
    "VariantTable": ("[models.NAME.variants.OTHER], [routes.NAME.variants.OTHER]", ""),
    "RouteTable": ("[routes.NAME]", ""),
    "RemoteTable": ("[remotes.NAME]", ""),
    "DeploymentTable": ("[[routes.NAME.deployments]]", ""),
    "TierMembersTable": ("[routes.NAME.tiers]", ""),
    "ComplexityTable": ("[routes.NAME.complexity]", ""),
    "KeywordRuleTable": ("[[routes.NAME.complexity.keyword_tier_rules]]", ""),
    "DimensionWeightsTable": ("[routes.NAME.complexity.dimension_weights]", ""),
    "TierBoundariesTable": ("[routes.NAME.complexity.tier_boundaries]", ""),
    "TokenThresholdsTable": ("[routes.NAME.complexity.token_thresholds]", ""),
}
SHORT: Final = {units.DURATION: "a duration", units.SIZE: "a size", NAME: "a name"}
TERMS: Final = f"""\
A *duration* is {units.DURATION.partition(": ")[2]}. A *size* is {units.SIZE.partition(": ")[2]}.
A *name* is {NAME.removeprefix("a name of ")}.
"""


ReferenceRow = tuple[str, str, str, str]  # key, type, default as TOML, meaning


def reference() -> str:
    parts = [INTRODUCTION, TERMS]
    for title, rows in tables():
        parts.append(f"## {title}\n\n| key | type | default | meaning |\n|---|---|---|---|")
        for key, takes, default, meaning in rows:
            cells = (f"`{key}`", takes, f"`{default}`" if default else "", meaning)
            parts[-1] += "\n| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        parts[-1] += "\n"
    return "\n".join(parts)


def tables() -> Iterator[tuple[str, list[ReferenceRow]]]:
    """Every table of the file: its title and its keys."""
    definitions = shape.json_schema()["$defs"]
    nodes: dict[str, shape.SchemaNode] = {}
    _collect(shape.document(), nodes)
    for name, (title, without) in SECTIONS.items():
        table = definitions[name]
        known = definitions[without]["properties"] if without else {}
        keys = (nodes[name].table or {}).items()
        schemas = table["properties"]
        yield title, [_row(key, schemas[key], node) for key, node in keys if key in schemas and key not in known]


def _row(key: str, schema: dict[str, Any], node: shape.SchemaNode) -> ReferenceRow:
    default = schema.get("default", "")
    if default != "":
        default = toml(default) if isinstance(default, list) else value_text(default)
    takes = node.expects
    for long, short in SHORT.items():
        takes = takes.replace(long, short)
    return key, takes, default, schema.get("description", "")


def _collect(node: shape.SchemaNode, into: dict[str, shape.SchemaNode]) -> None:
    if node.struct:
        into[node.struct.__name__] = node
    for child in (node.table or {}).values():
        _collect(child, into)
    if node.names:
        _collect(node.names[1], into)
    if node.item:
        _collect(node.item, into)


if __name__ == "__main__":
    print(reference(), end="")
