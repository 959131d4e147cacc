"""Finds the line of every key in a TOML document, which tomllib does not report.

Owns a skeleton scanner over text that tomllib has already accepted; it follows keys, tables, arrays and inline tables
and skips over values without reading them. Judges the document only in that it knows what is set again. Calls nobody.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from typing import Final, NamedTuple

from accelerd.base.errors import InternalError

KeyPath = tuple[str | int, ...]  # ("models", "qwen", "aliases", 0)

# Possessive quantifiers stand on character classes only: on groups they are wrong before Python 3.11.5 (gh-106052).
_BLANK: Final = re.compile(r"(?:[ \t\r\n]++|#[^\n]*+)*")
_SPACE: Final = re.compile(r"[ \t]*+")
_BARE_KEY: Final = re.compile(r"[ \t]*+([A-Za-z0-9_-]++)[ \t]*+")
_EQUALS: Final = re.compile(r"=[ \t]*+")
_STRING: Final = re.compile(
    r'"""(?:[^"\\]++|\\.|"(?!""))*"{3,5}'  # a multi-line string may end in two quotes of its own
    r"|'''(?:[^']++|'(?!''))*'{3,5}"
    r'|"(?:[^"\\]++|\\.)*"'
    r"|'[^']*+'",
    re.DOTALL,
)
_SCALAR: Final = re.compile(r"[^,\]}#\r\n]++")  # numbers, dates, true and false


def find(text: str) -> dict[KeyPath, int]:
    """Line (from 1) of every table, key and array element. `text` must be valid TOML."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


class Repeated(NamedTuple):
    """A key or table that was set before."""

    path: KeyPath
    first: int  # line
    again: int  # line
    whole: bool  # it had a value of its own, and now a key in it is set


def repeated(lines: Sequence[str]) -> Repeated | None:
    """What is set again at the end of these lines, which are valid but for that."""
    scanner = _Scanner("\n".join(lines))
    with suppress(InternalError):  # the rest of a statement is missing
        scanner.document()
    return scanner.repeated[-1] if scanner.repeated else None


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[KeyPath, int] = {}
        self.repeated: list[Repeated] = []
        self._values: set[KeyPath] = set()
        self._headers: set[KeyPath] = set()
        self._dotted: set[KeyPath] = set()  # tables that dotted keys have made
        self._tables: dict[KeyPath, int] = {}  # elements so far of each array of tables
        self._line, self._counted = 1, 0

    def document(self) -> None:
        prefix: KeyPath = ()
        self._match(_BLANK)
        while self.at < len(self.text):
            if self.text.startswith("[[", self.at):
                prefix = self._header(2)
            elif self.text[self.at] == "[":
                prefix = self._header(1)
            else:
                self._pair(prefix)
            self._match(_BLANK)

    def _header(self, brackets: int) -> KeyPath:
        """[a.b] or [[a.b]]: the path that the following keys belong to."""
        line = self._line_here()
        self.at += brackets
        parts = self._key()
        self.at += brackets
        path: KeyPath = ()
        for part in parts[:-1]:
            path = self._newest((*path, part))
            self._inside_a_value(path, line)
            self.lines.setdefault(path, line)
        path = (*path, parts[-1])
        tables = self._tables if brackets == 1 else ()
        if self._set(path) or path in tables:
            self.repeated.append(Repeated(path, self.lines[path], line, False))
        if brackets == 1:
            self._headers.add(path)
            self.lines[path] = line
            return path
        index = self._tables.get(path, 0)
        self._tables[path] = index + 1
        self.lines.setdefault(path, line)
        self.lines[(*path, index)] = line
        return (*path, index)

    def _newest(self, path: KeyPath) -> KeyPath:
        return (*path, self._tables[path] - 1) if path in self._tables else path

    def _pair(self, prefix: KeyPath) -> None:
        """key = value, below `prefix`."""
        line = self._line_here()
        path, parts = prefix, self._key()
        for part in parts[:-1]:
            path = (*path, part)
            self._inside_a_value(path, line)
            if path in self._headers:
                self.repeated.append(Repeated(path, self.lines[path], line, False))
            self._dotted.add(path)
            self.lines.setdefault(path, line)
        path = (*path, parts[-1])
        if self._set(path):
            self.repeated.append(Repeated(path, self.lines[path], line, False))
        self._values.add(path)
        self.lines.setdefault(path, line)
        self._match(_EQUALS)
        self._value(path)

    def _set(self, path: KeyPath) -> bool:
        return path in self._values or path in self._headers or path in self._dotted

    def _inside_a_value(self, path: KeyPath, line: int) -> None:
        if path in self._values:
            self.repeated.append(Repeated(path, self.lines[path], line, True))

    def _key(self) -> list[str]:
        """One dotted key; stops behind it and the space that follows."""
        parts = []
        while True:
            bare = _BARE_KEY.match(self.text, self.at)
            if bare is not None:
                parts.append(bare[1])
                self.at = bare.end()
            else:
                self._match(_SPACE)
                raw = self._match(_STRING)
                parts.append(tomllib.loads(f"k={raw}")["k"] if "\\" in raw else raw[1:-1])
                self._match(_SPACE)
            if not self.text.startswith(".", self.at):
                return parts
            self.at += 1

    def _value(self, path: KeyPath) -> None:
        match self.text[self.at : self.at + 1]:
            case '"' | "'":
                self._match(_STRING)
            case "[":
                for index in self._elements("]"):
                    self.lines[(*path, index)] = self._line_here()
                    self._value((*path, index))
            case "{":
                for _ in self._elements("}"):
                    self._pair(path)
            case _:
                self._match(_SCALAR)

    def _elements(self, closing: str) -> Iterator[int]:
        """The indices of what stands between brackets, each when the scanner is there."""
        self.at += 1
        for index in count():
            self._match(_BLANK)
            if self.text.startswith(closing, self.at):
                self.at += 1
                return
            yield index
            self._match(_BLANK)
            if self.text.startswith(",", self.at):
                self.at += 1

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise InternalError(f"cannot find the positions of keys after line {self._line_here()}")
        self.at = found.end()
        return found[0]

    def _line_here(self) -> int:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line
