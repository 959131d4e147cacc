"""accelctl's commands as plain data, read from the real argument parsers. Decides what each word may be completed to.

The parsers stay the only place where a command or an option is written down.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from accelerd.cli import COMMANDS, command_parser, overview

MODELS, TOOLBOXES, FILES, NOTHING = "models", "toolboxes", "files", "nothing"

# what a metavar stands for; with a command in front where it means something else there
KINDS: Final = {
    "MODEL": (MODELS,),
    "fit MODEL": (MODELS, FILES),
    "toolbox refresh NAME": (TOOLBOXES,),
    "toolbox pin NAME": (TOOLBOXES,),
    "toolbox unpin NAME": (TOOLBOXES,),
    "remove NAME": (MODELS,),
    "PATH": (FILES,),
    "PATH-OR-NAME": (FILES,),
}
FREE: Final = {"HH:MM", "N", "NAME", "PROMPT", "SIZE", "SLOT", "T", "TEXT", "TIME"}  # nobody can guess it


@dataclass(frozen=True)
class Word:
    """A value: one of `choices`, or what `kinds` name; `metavar` in manuals."""

    metavar: str
    kinds: tuple[str, ...] = ()
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

    def walk(self) -> Iterator[Node]:
        """This one and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


def tree() -> Node:
    """All of accelctl."""
    commands = tuple(read(command_parser(name)[1], name, text) for name, text in COMMANDS.items())
    root = overview()
    return Node("", "", root.epilog or "", options_of(root, ""), (), commands)


def read(parser: argparse.ArgumentParser, path: str, text: str) -> Node:
    """One command."""
    words = []
    children: list[Node] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            children += [read(child, f"{path} {name}", helps[name]) for name, child in action.choices.items()]
        elif not action.option_strings:
            words.append((word(action, path), action.help or ""))
    return Node(path, text, parser.epilog or "", options_of(parser, path), tuple(words), tuple(children))


def options_of(parser: argparse.ArgumentParser, path: str) -> tuple[Option, ...]:
    groups = {id(a): n for n, g in enumerate(parser._mutually_exclusive_groups, 1) for a in g._group_actions}
    return tuple(
        Option(
            tuple(action.option_strings),
            (action.help or "").removesuffix(" and exit").replace("show program's version number", "print the version")
            if action.dest in ("help", "version")
            else action.help or "",
            word(action, path) if action.nargs != 0 else None,
            groups.get(id(action), 0),
        )
        for action in parser._actions
        if action.option_strings
    )


def word(action: argparse.Action, path: str) -> Word:
    """What one value may be."""
    metavar = str(action.metavar or action.dest.upper().replace("_", "-"))
    kinds = KINDS.get(f"{path} {metavar}") or KINDS.get(metavar) or (NOTHING,)
    choices = tuple(map(str, action.choices or ()))
    return Word(metavar, () if choices else kinds, choices, action.nargs in ("*", "+"), action.nargs in ("?", "*"))


def undecided(root: Node) -> set[str]:
    """Metavars for which nobody has said whether they can be completed."""
    words = [w for node in root.walk() for w, _ in node.words]
    words += [option.value for node in root.walk() for option in node.options if option.value]
    return {w.metavar for w in words if w.kinds == (NOTHING,)} - FREE
