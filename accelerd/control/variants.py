"""What a variant does to requests, as the configuration has it: which field, how, and where that is written.

Of a system prompt it tells the length alone: `accelctl explain` is for showing to others.
"""

from __future__ import annotations

from typing import Any

import msgspec

from accelerd.config.variants import PROTECTED, Variant


class VariantName(msgspec.Struct):
    """One more name of a model or a route. `hidden`: GET /v1/models does not have it."""

    name: str
    aliases: list[str]
    description: str
    hidden: bool


class Edit(msgspec.Struct):
    """One change of a request. `value`: None where the field is removed. `source`: where that is written."""

    kind: str  # "remove", "default", "set": that is their order
    field: str  # "chat_template_kwargs.enable_thinking"
    value: Any
    source: str


class SystemPrompt(msgspec.Struct):
    """`mode`: "before" the client's own, or "instead" of it."""

    characters: int
    mode: str
    source: str


class VariantExplanation(VariantName, kw_only=True):
    """`of`: whose name it is. `protected`: fields that no variant changes."""

    of: str
    edits: list[Edit]
    system: SystemPrompt | None
    protected: list[str]


def name_of(variant: Variant) -> VariantName:
    return VariantName(variant.name, list(variant.aliases), variant.description, variant.hidden)


def explain_variant(variant: Variant, of: str) -> VariantExplanation:
    written = dict(variant.origins)
    edits = [Edit("remove", ".".join(path), None, written.get("remove", "")) for path in variant.remove]
    for kind, fields in (("default", variant.default), ("set", variant.set)):
        source = written.get(kind, "")
        edits += [Edit(kind, ".".join(path), msgspec.json.decode(value), source) for path, value in fields]
    system = None
    if variant.system is not None:
        system = SystemPrompt(len(variant.system), variant.system_mode, written.get("system", ""))
    return VariantExplanation(
        **msgspec.structs.asdict(name_of(variant)),
        of=of,
        edits=edits,
        system=system,
        protected=list(PROTECTED),
    )
