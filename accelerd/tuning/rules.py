"""Reads rules: those of the package, then the user's own, which win; every mistake with its file and line.

A rule of a user that has the name of another replaces it. With a mistake in the user's files none of them holds, and
the package's rules do. Blocking: call it in a thread. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, field

from accelerd.config import positions, shape
from accelerd.config.load import Source, read
from accelerd.config.load import parse as parse_toml
from accelerd.config.model import Origin, SetBy
from accelerd.config.problems import Problem, key_text
from accelerd.config.walk import TABLE, ConfigEntries, PathBase, TreeWalker
from accelerd.tuning.schema import RulesDocument

USER_FILE: Final = "tuning.toml"  # beside accelerd.toml; also its drop-in folder tuning.toml.d
PACKAGED: Final = "rules.toml"


class TuningRule(Struct, frozen=True):
    """If `when` holds then `sets`, for a reason. Values are those of ModelSpec; "env.NAME" is a variable."""

    name: str
    when: Mapping[str, Any]
    sets: Mapping[str, Any]
    source: str
    reason: str
    origin: Origin
    enabled: bool = True


class TuningRules(Struct, frozen=True):
    """In the order in which they hold: what comes later wins. `problems`: why the user's own are not among them."""

    rules: tuple[TuningRule, ...]
    problems: tuple[Problem, ...] = ()


def user_file(config_file: Path) -> Path:
    """Where a user writes rules."""
    return config_file.with_name(USER_FILE)


def load(config_file: Path) -> TuningRules:
    """All rules that hold for the user of this configuration."""
    own = read(user_file(config_file))
    rules, problems = parse(own)
    merged = {rule.name: rule for rule in packaged()}
    for rule in rules if not problems else ():
        merged.pop(rule.name, None)  # it comes later now
        merged[rule.name] = rule
    for rule in rules:
        if not rule.enabled and not rule.sets and rule.name not in {one.name for one in packaged()}:
            text = f"there is no rule {rule.name} to switch off"
            problems.append(Problem(rule.origin.file or "", rule.origin.line, _key(rule.name), text, "warning"))
    return TuningRules(tuple(rule for rule in merged.values() if rule.enabled), tuple(problems))


@cache
def packaged() -> tuple[TuningRule, ...]:
    """The package's own."""
    text = (resources.files(__package__) / PACKAGED).read_text("utf-8")
    rules, problems = parse([Source(PACKAGED, Path(PACKAGED), text)])
    if problems:
        raise ValueError("; ".join(map(str, problems)))
    return tuple(rules)


def parse(files: Sequence[Source]) -> tuple[list[TuningRule], list[Problem]]:
    """The rules of these files in order, and every mistake."""
    rules: dict[str, TuningRule] = {}
    problems: list[Problem] = []
    for source in files:
        tree, problem = parse_toml(source)
        if tree is None or source.text is None:
            problems += [problem] if problem else []
            continue
        folder = str(source.path.parent.absolute())
        walker = TreeWalker(source.name, positions.find(source.text), PathBase(folder, folder), _root())
        walker.walk(tree)
        found = _Found(walker.entries)
        problems += [*walker.problems, *found.problems()]
        for rule in found.rules():
            rules.pop(rule.name, None)
            rules[rule.name] = rule
    return list(rules.values()), problems


@cache
def _root() -> shape.SchemaNode:
    return shape.reflect(RulesDocument)


def _key(name: str, *more: str) -> str:
    return key_text(("rules", name, *more))


class _Found(Struct):
    """The entries of one file."""

    entries: ConfigEntries
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = [str(path[1]) for path, entry in self.entries.items() if len(path) == 2 and entry.value is TABLE]

    def rules(self) -> Iterator[TuningRule]:
        for name in self.names:
            here = self.entries["rules", name]
            yield TuningRule(
                name=name,
                when={key: value for (key, *_), value in self._values(name, "when")},
                sets={_field(key): value for key, value in self._values(name, "set")},
                source=self._text(name, "source"),
                reason=self._text(name, "reason"),
                origin=Origin(f"tuning rule {name}", here.file, here.line, SetBy.RULE),
                enabled=self._enabled(name),
            )

    def problems(self) -> Iterator[Problem]:
        """What a rule lacks."""
        for name in self.names:
            here = self.entries["rules", name]
            if not self._enabled(name):
                continue
            if not any(True for _ in self._values(name, "set")) and not self._wrong(name, "set"):
                yield Problem(here.file, here.line, _key(name), "needs set = {…}: what it sets")
            for key, what in (("source", "who found out"), ("reason", "why, in one clause")):
                if ("rules", name, key) not in self.entries:
                    yield Problem(here.file, here.line, _key(name), f'needs {key} = "…": {what}')
            yield from self._unfit(name)

    def _unfit(self, name: str) -> Iterator[Problem]:
        sets = {_field(key): value for key, value in self._values(name, "set")}
        batch, ubatch = sets.get("batch"), sets.get("ubatch")
        if batch is not None and ubatch is not None and ubatch > batch:
            entry = self.entries["rules", name, "set", "ubatch"]
            yield Problem(
                entry.file, entry.line, _key(name, "set", "ubatch"), f"expected at most batch = {batch}, got {ubatch}"
            )

    def _enabled(self, name: str) -> bool:
        entry = self.entries.get(("rules", name, "enabled"))
        return entry is None or entry.value is not False

    def _wrong(self, name: str, table: str) -> bool:
        """Was something written there that is not usable? Then it is reported already."""
        return any(
            path[:3] == ("rules", name, table) and not entry.usable and entry.value is not TABLE
            for path, entry in self.entries.items()
        )

    def _values(self, name: str, table: str) -> Iterator[tuple[tuple[str, ...], Any]]:
        """Keys below the table, and usable values."""
        for path, entry in self.entries.items():
            if path[:3] == ("rules", name, table) and len(path) > 3 and entry.usable:
                yield tuple(map(str, path[3:])), entry.value

    def _text(self, name: str, key: str) -> str:
        entry = self.entries.get(("rules", name, key))
        return str(entry.value) if entry is not None and entry.usable else ""


def _field(key: tuple[str, ...]) -> str:
    """("kv_cache_type", "k") is cache_type_k, ("env", "X") is env.X."""
    return f"cache_type_{key[1]}" if key[0] == "kv_cache_type" else ".".join(key)
