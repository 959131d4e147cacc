"""The table of a LoRA adapter: its keys, and how it is read and shown. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerd.config import values as toml
from accelerd.config.keys import array, described, key, table


@dataclass(frozen=True)
class LoraAdapter:
    """A LoRA adapter. Its place in the list, from 0, is its `id` in the field `lora` of requests."""

    path: str = key(toml.FilePath, "", "The adapter's GGUF file.")
    scale: float = key(
        float,
        1.0,
        "How strongly the adapter is applied unless a request says otherwise; 0 loads it without applying it.",
        ge=-100,
        le=100,
    )


def _adapter(values: dict[str, Any]) -> LoraAdapter:
    """ValueError with what completes "expected …"."""
    adapter = LoraAdapter(**values)
    if not adapter.path:
        raise ValueError('a table with path = "…"')
    if ":" in adapter.path and adapter.scale != 1:  # --lora-scaled FILE:SCALE
        raise ValueError("a path without a colon where scale is not 1, as llama-server takes both in one value")
    return adapter


def adapter_tables(adapters: tuple[LoraAdapter, ...]) -> list[dict[str, Any]]:
    return [{"path": adapter.path, "scale": adapter.scale} for adapter in adapters]


ADAPTERS = array(
    described(
        table(LoraAdapter),
        "",
        extra={"parse": _adapter, "expects": 'a table such as {path = "style.gguf", scale = 0.5}'},
    )
)
