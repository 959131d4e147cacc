"""Reads rules: those of the package, then the user's own, which win; every mistake with its file and line.

A rule of a user that has the name of another replaces it. With a mistake in the user's files none of them holds, and
the package's rules do. Blocking: call it in a thread. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from accelerd.config import positions, shape
from accelerd.config.load import parse as parse_toml
from accelerd.config.load import read
from accelerd.config.model import Origin, SetBy
from accelerd.config.problems import Problem, Source, key_text
from accelerd.config.walk import INVALID, TABLE, ConfigEntries, PathBase, TreeWalker
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
            problems.append(
                Problem(rule.origin.file or "", rule.origin.line, key_text(("rules", rule.name)), text, "warning")
            )
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
        problems += walker.problems
        for path, entry in walker.entries.items():
            if len(path) == 2 and entry.value is TABLE:
                rule, lacks = _rule(str(path[1]), walker.entries)
                problems += lacks
                rules.pop(rule.name, None)
                rules[rule.name] = rule
    return list(rules.values()), problems


@cache
def _root() -> shape.SchemaNode:
    return shape.reflect(RulesDocument)


def _rule(name: str, entries: ConfigEntries) -> tuple[TuningRule, list[Problem]]:
    """One rule of a file, and what it lacks."""
    here = entries["rules", name]
    below = {tuple(map(str, path[2:])): entry for path, entry in entries.items() if path[:2] == ("rules", name)}
    values = {path: entry.value for path, entry in below.items() if entry.usable}
    rule = TuningRule(
        name=name,
        when={path[1]: value for path, value in values.items() if path[0] == "when"},
        sets={_field(path[1:]): value for path, value in values.items() if path[0] == "set"},
        source=values.get(("source",), ""),
        reason=values.get(("reason",), ""),
        origin=Origin(f"tuning rule {name}", here.file, here.line, SetBy.RULE),
        enabled=values.get(("enabled",), True),
    )
    if not rule.enabled:
        return rule, []
    lacks = []
    mistaken = any(path[:1] == ("set",) and entry.value is INVALID for path, entry in below.items())  # reported already
    if not rule.sets and not mistaken:
        lacks.append("needs set = {…}: what it sets")
    if ("source",) not in below:
        lacks.append('needs source = "…": who found out')
    if ("reason",) not in below:
        lacks.append('needs reason = "…": why, in one clause')
    problems = [Problem(here.file, here.line, key_text(("rules", name)), text) for text in lacks]
    batch, ubatch = rule.sets.get("batch"), rule.sets.get("ubatch")
    if batch is not None and ubatch is not None and ubatch > batch:
        key, text = key_text(("rules", name, "set", "ubatch")), f"expected at most batch = {batch}, got {ubatch}"
        problems.append(Problem(here.file, below["set", "ubatch"].line, key, text))
    return rule, problems


def _field(key: tuple[str, ...]) -> str:
    """("kv_cache_type", "k") is cache_type_k, ("env", "X") is env.X."""
    return f"cache_type_{key[1]}" if key[0] == "kv_cache_type" else ".".join(key)
