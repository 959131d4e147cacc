"""accelctl's commands as plain data, read from the real argument parsers.

The parsers stay the only place where a command or an option is written down.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

from accelerd.cli import COMMANDS, command_parser, overview


@dataclass(frozen=True)
class Word:
    """A value: `metavar`, or one of `choices`."""

    metavar: str
    choices: tuple[str, ...] = ()
    many: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Option:
    """--name, with a value or without."""

    names: tuple[str, ...]
    help: str
    value: Word | None = None
    group: int = 0  # of the options with the same number that is not 0, one may be given


@dataclass(frozen=True)
class Node:
    """accelctl, a command, or a command of a command; `path` is what is typed before: "toolbox refresh"."""

    path: str
    help: str
    epilog: str
    options: tuple[Option, ...]
    words: tuple[tuple[Word, str], ...]  # with their help
    children: tuple[Node, ...] = field(default=())

    @property
    def name(self) -> str:
        return self.path.rpartition(" ")[2]


def tree() -> Node:
    """All of accelctl."""
    commands = tuple(read(command_parser(name)[1], name, text) for name, text in COMMANDS.items())
    root = overview()
    return Node("", "", root.epilog or "", options_of(root), (), commands)


def read(parser: argparse.ArgumentParser, path: str, text: str) -> Node:
    """One command."""
    words = []
    children: list[Node] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            children += [read(child, f"{path} {name}", helps[name]) for name, child in action.choices.items()]
        elif not action.option_strings:
            words.append((word(action), action.help or ""))
    return Node(path, text, parser.epilog or "", options_of(parser), tuple(words), tuple(children))


def options_of(parser: argparse.ArgumentParser) -> tuple[Option, ...]:
    groups = {id(a): n for n, g in enumerate(parser._mutually_exclusive_groups, 1) for a in g._group_actions}
    return tuple(
        Option(
            tuple(action.option_strings),
            (action.help or "").removesuffix(" and exit").replace("show program's version number", "print the version")
            if action.dest in ("help", "version")
            else action.help or "",
            word(action) if action.nargs != 0 else None,
            groups.get(id(action), 0),
        )
        for action in parser._actions
        if action.option_strings
    )


def word(action: argparse.Action) -> Word:
    """What one value may be."""
    metavar = str(action.metavar or action.dest.upper().replace("_", "-"))
    choices = tuple(map(str, action.choices or ()))
    return Word(metavar, choices, action.nargs in ("*", "+"), action.nargs in ("?", "*"))
