"""Loads the files into a Config, or returns the list of all mistakes.

Owns the order of work: read, parse, walk each file, merge, resolve, rules. Blocks on the disk: the daemon calls it on a
worker thread. Must never change a file or keep state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from accelerd.config import positions, resolve, rules, sources
from accelerd.config.model import Config
from accelerd.config.problems import ConfigErrors, Problem
from accelerd.config.walk import ConfigEntries, PathBase, TreeWalker


def load(config_file: Path, home: Path) -> Config:
    """The configuration that `config_file` and its drop-ins make; ConfigErrors lists every mistake.

    A missing file is an empty configuration. Values of later files win, tables merge.
    """
    config, problems = evaluate(sources.read(config_file), config_file, home, with_warnings=False)
    if config is None:
        raise ConfigErrors(problems)
    return config


def check(config_file: Path, home: Path) -> tuple[Config | None, list[Problem]]:
    """Like `load`, but mistakes and warnings come back as a list; no Config when there is an error."""
    return evaluate(sources.read(config_file), config_file, home, with_warnings=True)


def evaluate(
    files: Sequence[sources.Source], config_file: Path, home: Path, *, with_warnings: bool
) -> tuple[Config | None, list[Problem]]:
    """The configuration from files that were already read."""
    base = PathBase(str(home.absolute()), str(config_file.parent.absolute()))
    entries: ConfigEntries = {}
    problems: list[Problem] = []
    readable = True
    for source in files:
        tree, problem = sources.parse(source)
        if tree is None or source.text is None:
            readable = False
            problems += [problem] if problem else []
            continue
        walker = TreeWalker(source.name, positions.find(source.text), base)
        walker.walk(tree)
        entries |= walker.entries
        problems += walker.problems
    config = None
    if readable:  # with an unreadable file, the rules would report wrong problems
        tables = resolve.ConfigTables(entries)
        config = resolve.resolve(tables, tuple(str(source.path.absolute()) for source in files))
        problems += rules.errors(entries, tables, config)
        if with_warnings:
            problems += rules.warnings(entries, config)
    problems = _in_order(problems, [source.name for source in files])
    failed = any(problem.severity == "error" for problem in problems)
    return (None if failed else config), problems


def _in_order(problems: Iterable[Problem], names: list[str]) -> list[Problem]:
    """By file, then line; each once."""
    rank = {name: index for index, name in enumerate(names)}
    return sorted(dict.fromkeys(problems), key=lambda problem: (rank.get(problem.file, -1), problem.line or 0))
