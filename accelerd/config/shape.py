"""The schema as a tree that programs walk: which values each key allows.

Builds the tree from the settings classes of model.py, once, by introspection. Knows types and `Meta.extra`; must never
know a particular key's meaning. walk.py validates with it, show.py writes values as in the file, and editors get it as
JSON Schema.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from functools import cache, cached_property
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from accelerd.config.command import CommandSettings
from accelerd.config.complexity import ComplexitySettings, TierMembers
from accelerd.config.keys import Once, described, named, table
from accelerd.config.model import SECTIONS, Config, LayerTable, ModelSpec, Route
from accelerd.config.problems import value_text
from accelerd.config.remotes import Remote
from accelerd.config.values import Name, Parse
from accelerd.config.variants import Variant

_PROFILE = ("profile", described(Name | list[Name], "A profile, or several; later ones take precedence."))
ModelTable = table(ModelSpec, "ModelTable", model_only=True, more=(_PROFILE,), bases=(LayerTable,))


def _section(name: str) -> Any:
    settings = type(getattr(Config, name))
    return described(table(settings), settings.__doc__ or "")


_ENGINES = [(name, _section(name)) for section, name in SECTIONS.items() if section.startswith("engines.")]
_Engines = msgspec.defstruct("EnginesTable", _ENGINES, rename={"llama_server": "llama-server"})
Document = msgspec.defstruct(
    "Document",
    [
        *((name, _section(name)) for section, name in SECTIONS.items() if section == name),
        ("engines", described(_Engines, "The programs that run models.")),
        ("defaults", described(LayerTable, "Settings of all models, unless they set them otherwise.")),
        ("profiles", described(named(Name, LayerTable), "Named groups of settings for `profile`.")),
        ("models", described(named(Name, ModelTable), "The models, by the name that clients use.")),
        ("routes", described(named(Name, table(Route)), "Names for several models.")),
        ("remotes", described(named(Name, table(Remote)), "Servers elsewhere.")),
    ],
    namespace={"__doc__": "accelerd's configuration."},
)


class SchemaNode(Struct, frozen=True, dict=True):
    type: Any
    expects: str
    parse: Parse | None = None
    path: Literal["file", "program"] | None = None
    secret: bool = False
    show: Parse | None = None  # the program's unit back to what is written
    names: tuple[SchemaNode, SchemaNode] | None = None  # a table with free keys
    item: SchemaNode | None = None  # an array's element
    once: Once | None = None  # an array's elements may not be repeated
    choices: tuple[str, ...] = ()  # all there are
    leaf: bool = True
    struct: type[Struct] | None = None  # of a table

    @cached_property
    def table(self) -> dict[str, SchemaNode] | None:
        """What may stand at the keys of a table. Reflected when it is first asked for: most files name few tables."""
        if self.struct is None:
            return None
        return {field.encode_name: reflect(field.type) for field in msgspec.structs.fields(self.struct)}


@cache
def document() -> SchemaNode:
    return reflect(Document)


def reflect(kind: Any) -> SchemaNode:
    """What may stand where a value of this type is expected."""
    plain, metas = kind, list[msgspec.Meta]()
    while get_origin(plain) is Annotated:
        metas = [*get_args(plain)[1:], *metas]
        plain = get_args(plain)[0]
    extra: dict[str, Any] = {}
    for meta in metas:
        extra |= meta.extra or {}
    node = _reflect_plain(plain, kind, metas)
    return replace(
        node, **{key: extra[key] for key in ("expects", "parse", "path", "secret", "show", "once") if key in extra}
    )


def _reflect_plain(plain: Any, kind: Any, metas: list[msgspec.Meta]) -> SchemaNode:
    origin, arguments = get_origin(plain), get_args(plain)
    if origin in (Union, types.UnionType):
        return _reflect_union([reflect(argument) for argument in arguments], kind)
    if origin is list:
        item = reflect(arguments[0])
        return SchemaNode(kind, f"an array, each element {item.expects}", item=item, leaf=False)
    if origin is dict:
        return SchemaNode(kind, "a table", names=(reflect(arguments[0]), reflect(arguments[1])), leaf=False)
    if origin is Literal:
        choices = tuple(choice for choice in arguments if isinstance(choice, str))
        return SchemaNode(kind, "one of " + ", ".join(map(value_text, arguments)), choices=choices)
    if isinstance(plain, type) and issubclass(plain, msgspec.Struct):
        return SchemaNode(kind, "a table", leaf=False, struct=plain)
    words: dict[Any, str] = {
        Any: "a value",
        bool: "true or false",
        str: "a string",
        int: "a whole number",
        float: "a number",
    }
    return SchemaNode(kind, words[plain] + _limits(metas))


def _reflect_union(members: list[SchemaNode], kind: Any) -> SchemaNode:
    first = next((member for member in members if member.parse), None)
    return SchemaNode(
        kind,
        ", or ".join(member.expects for member in members),
        first.parse if first else None,
        item=next((member.item for member in members if member.item), None),
        once=next((member.once for member in members if member.once), None),
        leaf=any(member.leaf for member in members),
        struct=next((member.struct for member in members if member.struct), None),
    )


def _limits(metas: list[msgspec.Meta]) -> str:
    least = next((meta.ge for meta in metas if meta.ge is not None), None)
    most = next((meta.le for meta in metas if meta.le is not None), None)
    if (above := next((meta.gt for meta in metas if meta.gt is not None), None)) is not None:
        return f" above {above}" + (f" to {most}" if most is not None else "")
    if least is None and most is None:
        return ""
    return f" from {least} to {most}" if most is not None else f" of at least {least}"


def json_schema() -> dict[str, Any]:
    """For editors: completion, descriptions, ranges. Every key is optional and none may be added."""
    schema = msgspec.json.schema(Document)
    definitions: dict[str, Any] = schema["$defs"]
    for structure in definitions.values():
        structure.pop("required", None)
        structure["additionalProperties"] = False
    # A drop-in may add to a model that another file names: one file alone need not have path or model, but never both.
    definitions["ModelTable"]["not"] = {"required": ["path", "model"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "accelerd.toml", **schema}


# Tables in those of models and routes, whose keys are no others'.
INNER: Mapping[str, type[Any]] = {
    "[models.NAME.command]": CommandSettings,
    "[models.NAME.variants.OTHER]": Variant,
    "[routes.NAME.tiers]": TierMembers,
    "[routes.NAME.complexity]": ComplexitySettings,
}


@cache
def homes() -> Mapping[str, list[str]]:
    """Key → the sections that know it."""
    root = document().table or {}
    found: dict[str, list[str]] = {}

    def add(node: SchemaNode, section: str) -> None:
        for key in node.table or {}:
            found.setdefault(key, []).append(section)

    for name, node in root.items():
        if node.names:
            add(node.names[1], f"[{name}.NAME]")
        else:
            add(node, f"[{name}]")
    add((root["engines"].table or {})["llama-server"], "[engines.llama-server]")
    add((root["defaults"].table or {})["sampling"], "sampling = {…}")
    for section, settings in INNER.items():
        for key in reflect(table(settings)).table or {}:
            found.setdefault(key, [section])
    return found
