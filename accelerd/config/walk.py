"""Validates one parsed file against the schema and collects every mistake in it.

Turns nested tables into flat entries {path: value in the program's unit}, each with its file and line. Checks one key
at a time, with a suggestion for one that does not exist; rules.py checks what involves several keys or files. No I/O.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from enum import Enum
from typing import Any, Final

import msgspec
from msgspec import Struct

from accelerd.config import shape
from accelerd.config.positions import KeyPath
from accelerd.config.problems import Problem, Severity, closest, did_you_mean, key_text, kind_text, value_text
from accelerd.config.shape import SchemaNode
from accelerd.config.synonyms import meant_by

NAMED: Final = ("models", "routes", "remotes", "profiles")  # sections with a table for each name


class _NoValue(Enum):
    TABLE = "TABLE"
    INVALID = "INVALID"


TABLE: Final = _NoValue.TABLE  # the entry of a table itself: it exists, maybe empty
INVALID: Final = _NoValue.INVALID  # the value of the key is wrong, and the problem has been reported


class ConfigEntry(Struct, frozen=True):
    """One key's value in the program's unit, and where it was written."""

    value: Any
    file: str
    line: int | None
    items: tuple[tuple[Any, int | None], ...] = ()  # an array's elements with their lines; INVALID ones too

    @property
    def usable(self) -> bool:
        return self.value is not TABLE and self.value is not INVALID


ConfigEntries = dict[KeyPath, ConfigEntry]


class PathBase(Struct, frozen=True):
    """The directories that relative paths and ~ in the file refer to."""

    home: str
    directory: str

    def expand(self, value: str) -> str:
        """An absolute path; ValueError for another user's home."""
        if value == "~" or value.startswith("~/"):
            return self.home + value[1:]
        if value.startswith("~"):
            raise ValueError('an absolute path, or one that begins with "~/"')
        return value if value.startswith("/") else f"{self.directory}/{value.removeprefix('./')}"


class TreeWalker:
    """Turns the nested tables of one file into flat entries."""

    def __init__(self, file: str, lines: Mapping[KeyPath, int], base: PathBase, root: SchemaNode | None = None) -> None:
        """`root`: the schema, if it is not that of accelerd.toml."""
        self.entries: ConfigEntries = {}
        self.problems: list[Problem] = []
        self._file = file
        self._lines = lines
        self._base = base
        self._root = root

    def walk(self, tree: dict[str, Any]) -> None:
        """Fill `entries` and `problems` from what tomllib read."""
        self._visit(self._root or shape.document(), tree, ())

    def _visit(self, node: SchemaNode, value: Any, path: KeyPath) -> None:
        if isinstance(value, dict) and node.table is not None:
            self._put(path, TABLE)
            for key, child in value.items():
                if key in node.table:
                    self._visit(node.table[key], child, (*path, key))
                else:
                    self._unknown(path, key, list(node.table), child)
        elif isinstance(value, dict) and node.names is not None:
            self._put(path, TABLE)
            for key, child in value.items():
                self._leaf(node.names[0], key, (*path, key))
                self._visit(node.names[1], child, (*path, key))
        elif isinstance(value, list) and node.item is not None:
            values = [self._element(node.item, child, (*path, index)) for index, child in enumerate(value)]
            items = tuple((item, self._line((*path, index))) for index, item in enumerate(values))
            self._put(path, self._array(node, values, path), items)
        elif node.leaf:
            result = self._leaf(node, value, path)
            # A plain value in place of a table sets all keys of the table.
            for place in [(*path, key) for key in node.table] if node.table else [path]:
                self._put(place, result, line=self._line(path))
        else:
            self._put(path, INVALID)
            one = node.item is not None and _converts(value, node.item)
            hint = f"; {_in_brackets(value, node)}" if one and not node.secret else ""
            self._report(path, f"expected {node.expects}, got {_got(value, node)}{hint}")

    def _element(self, node: SchemaNode, value: Any, path: KeyPath) -> Any:
        """An array's element; of a table what `parse` makes of its values."""
        if node.table is None or not isinstance(value, dict):
            return self._leaf(node, value, path)
        known = node.table
        for key in value.keys() - known.keys():
            self._unknown(path, key, list(known))
        found = {key: self._inner(known[key], child, (*path, key)) for key, child in value.items() if key in known}
        if len(found) < len(value) or INVALID in found.values():
            return INVALID
        try:
            return node.parse(found) if node.parse is not None else found
        except ValueError as error:
            self._report(path, f"expected {error}")
            return INVALID

    def _inner(self, node: SchemaNode, value: Any, path: KeyPath) -> Any:
        """A value in a table that is an array's element."""
        if node.item is None or not isinstance(value, list):
            return self._leaf(node, value, path)
        return self._array(node, [self._leaf(node.item, one, (*path, at)) for at, one in enumerate(value)], path)

    def _array(self, node: SchemaNode, values: list[Any], path: KeyPath) -> Any:
        """Its elements, each once if they must be, or INVALID after a report."""
        named: dict[Any, Any] = {}
        for index, value in enumerate(values):
            name = index if node.once is None or value is INVALID else node.once.name(value)
            if name not in named:
                named[name] = value
            elif node.once is not None:
                wrong = node.once.severity == "error"
                more = "" if wrong else ", and has no effect the second time"
                self._report((*path, index), f"{value_text(name)} is listed twice{more}", node.once.severity)
                named[name] = INVALID if wrong else named[name]
        return INVALID if INVALID in named.values() else tuple(named.values())

    def _leaf(self, node: SchemaNode, value: Any, path: KeyPath) -> Any:
        """The value in the program's unit, or INVALID after a report."""
        try:
            result = msgspec.convert(value, node.type)
        except msgspec.ValidationError:
            near = _meant(value, node.choices) or closest(value, node.choices) if isinstance(value, str) else None
            hint = f"; did you mean {value_text(near)}?" if near else ""
            self._report(path, f"expected {node.expects}, got {_got(value, node)}{hint}")
            return INVALID
        try:
            if node.parse is not None:
                result = node.parse(result)
            if node.path == "file" or (node.path == "program" and ("/" in result or result.startswith("~"))):
                result = self._base.expand(result)
        except ValueError as error:
            self._report(path, f"expected {error}, got {_got(value, node)}")
            return INVALID
        return result

    def _unknown(self, path: KeyPath, key: str, known: list[str], value: Any = None) -> None:
        dotted = isinstance(value, dict) and self._root is None and len(path) == 2 and path[0] in NAMED
        if dotted and not _hint(key, known, {}):
            name = f"{path[1]}.{key}"
            while isinstance(value, dict) and len(value) == 1 and isinstance(only := next(iter(value.values())), dict):
                name, value = f"{name}.{next(iter(value))}", only
            suffix = f"; a name with dots needs quotes: [{key_text((path[0], name))}]"
        else:
            suffix = _hint(key, known, shape.homes() if self._root is None else {})
        what = "section" if not path else "key"
        self._report((*path, key), f"unknown {what}{suffix}")

    def _put(
        self, path: KeyPath, value: Any, items: tuple[tuple[Any, int | None], ...] = (), line: int | None = None
    ) -> None:
        self.entries[path] = ConfigEntry(value, self._file, line or self._line(path), items)

    def _line(self, path: KeyPath) -> int | None:
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path)

    def _report(self, path: KeyPath, message: str, severity: Severity = "error") -> None:
        self.problems.append(Problem(self._file, self._line(path), key_text(path), message, severity))


def _in_brackets(value: Any, node: SchemaNode) -> str:
    words = value.split() if isinstance(value, str) and value.startswith("-") else [value]  # an option and its value
    elements = ", ".join(_got(word, node) for word in words)
    return f"{'each' if len(words) > 1 else 'a single'} one is written in brackets: [{elements}]"


def _converts(value: Any, node: SchemaNode) -> bool:
    try:
        msgspec.convert(value, node.type)
    except msgspec.ValidationError:
        return False
    return not isinstance(value, dict)


def _got(value: Any, node: SchemaNode) -> str:
    return kind_text(value) if node.secret else value_text(value)


def _meant(word: str, known: Container[str]) -> str | None:
    """The first of what other programs mean by a word that is known here."""
    return next((one for one in meant_by(word) if one in known), None)


def _hint(key: str, here: Sequence[str], elsewhere: Mapping[str, Sequence[str]]) -> str:
    """A suffix for "unknown key": a similar key of this table, or the section that the key belongs to, or nothing.

    `elsewhere` maps a key to the sections that know it.
    """
    if meant := _meant(key, here):
        return f"; did you mean '{meant}'?"
    if key in elsewhere:
        return f"; it belongs in {' or '.join(elsewhere[key])}"
    near = _meant(key, elsewhere)
    if near is None and (suffix := did_you_mean(key, here)):
        return suffix
    near = near or closest(key, list(elsewhere))
    return f"; did you mean '{near}', which belongs in {' or '.join(elsewhere[near])}?" if near else ""


def where(entry: ConfigEntry) -> str:
    return f"{entry.file}:{entry.line}"


def problem_at(entry: ConfigEntry, path: KeyPath, message: str, severity: Severity = "error") -> Problem:
    return Problem(entry.file, entry.line, key_text(path), message, severity)
