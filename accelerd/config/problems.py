"""Mistakes in a configuration, for people and programs.

Owns Problem and ConfigErrors and the quoting of keys and values in their text. Must never show a value of `env`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from msgspec import Struct
from msgspec.structs import asdict

from accelerd.base.errors import AccelError
from accelerd.config.positions import KeyPath

Severity = Literal["error", "warning"]
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_SHOWN: Final = 60  # maximum characters of a wrong value in a message


class Problem(Struct, frozen=True):
    """One mistake: where it was written and what was expected. `file` is relative to the configuration's folder."""

    file: str
    line: int | None
    key: str  # "models.qwen.context"; empty when the mistake is about the whole file
    message: str
    severity: Severity = "error"
    column: int | None = None  # only for TOML syntax

    def __str__(self) -> str:
        where = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        key = f"{self.key}: " if self.key else ""
        label = "warning: " if self.severity == "warning" else ""
        return f"{where}: {label}{key}{self.message}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the API's `problems` and `accelctl --json`."""
        return asdict(self)


def first_error(problems: Iterable[Problem]) -> str:
    """The first mistake, and how many more there are; empty where there is none."""
    errors = [str(problem) for problem in problems if problem.severity == "error"]
    return "".join(errors[:1]) + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")


HEADER: Final = "# Written by "  # the first line of every generated drop-in; other files are never replaced


class Source(Struct, frozen=True):
    """One file of the configuration: its text, or why it cannot be used."""

    name: str  # for messages: relative to the main file's folder
    path: Path
    text: str | None
    problem: Problem | None = None

    @property
    def generated(self) -> bool:
        """Is it a drop-in that a tool wrote, not a person?"""
        return "/" in self.name and (self.text or "").startswith(HEADER)


class ConfigErrors(AccelError):
    """A configuration that cannot be used; `problems` lists every mistake, `fields` the same for JSON."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        count = len(self.problems)
        errors = sum(problem.severity == "error" for problem in self.problems)
        summary = "cannot use the configuration"
        if count > 1:
            summary += f": {errors} error{'s' * (errors != 1)}"
        listed = "; ".join(map(str, self.problems[:3])) + (f"; and {count - 3} more" if count > 3 else "")
        super().__init__(
            "config_invalid", f"{summary}: {listed}", problems=[problem.as_dict() for problem in self.problems]
        )


def key_text(path: KeyPath) -> str:
    """A key as TOML writes it: models."a/b".aliases[0]; control characters are escaped."""
    out = ""
    for part in path:
        if isinstance(part, int):
            out += f"[{part}]"
        else:
            bare = _BARE.fullmatch(part) is not None
            out += "." if out else ""
            out += part if bare else json.dumps(part, ensure_ascii=not part.isprintable())
    return out


def value_text(value: Any) -> str:
    """A wrong value for a message, short and with control characters escaped."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            text = json.dumps(value, ensure_ascii=not value.isprintable())
            return text if len(text) <= _SHOWN else text[: _SHOWN - 2] + '…"'
        case int() | float():
            return str(value) if isinstance(value, float) or abs(value) < 10**40 else "a very large number"
        case _:
            return kind_text(value)


def kind_text(value: Any) -> str:
    """The type of a value, without the value."""
    kinds = {bool: "true or false", str: "a string", int: "a whole number", float: "a number", dict: "a table",
             list: "an array"}  # fmt: skip
    return kinds.get(type(value), "a date or time")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The suffix "; did you mean 'x'?", or nothing when no known word is similar."""
    near = closest(word, known)
    return f"; did you mean '{near}'?" if near else ""


def closest(word: str, known: Sequence[str]) -> str | None:
    """The known word that `word` was probably meant to be."""
    from difflib import get_close_matches  # here, because it is only needed for mistakes

    lowered = {candidate.lower(): candidate for candidate in known}
    near = get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return lowered[near[0]] if near else None
