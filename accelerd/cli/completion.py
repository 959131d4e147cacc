"""Answers the completion scripts of bash, zsh and fish through argcomplete: which words may stand at the cursor.

Only a completion script starts it, so that no command pays for its imports. It only reads: the parsers, the names that
the daemon or the configuration knows, and file names.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from argcomplete.completers import FilesCompleter, SuppressCompleter
from argcomplete.finders import ExclusiveCompletionFinder

from accelerd.base import names
from accelerd.base.ports import Roots
from accelerd.cli.connect import DaemonClient
from accelerd.cli.context import Context, model_names, route_names, toolbox_names
from accelerd.cli.output import CliOutput

Completer = Callable[..., Iterable[str]]


def known(source: Callable[[Context], Iterable[str]], parsed_args: argparse.Namespace) -> Iterable[str]:
    roots = Roots.from_env()
    socket = getattr(parsed_args, "socket", None) or os.environ.get(names.ENV_SOCKET) or roots.control_socket
    out = CliOutput(sys.stdout, sys.stderr, os.environ)
    return source(Context(roots, DaemonClient(Path(socket)), out, sys.stdin, os.environ))


MODELS: Final[Completer] = lambda parsed_args, **_: known(model_names, parsed_args)  # noqa: E731
FILES: Final = FilesCompleter()
COMPLETERS: Final[Mapping[str, Completer]] = {  # by metavar; with a command in front where it has another meaning there
    "MODEL": MODELS,
    "fit MODEL": lambda **asked: [*MODELS(**asked), *FILES(**asked)],
    "remove NAME": MODELS,
    "ROUTE": lambda parsed_args, **_: known(route_names, parsed_args),
    "toolbox NAME": lambda parsed_args, **_: known(toolbox_names, parsed_args),
    "PATH": FILES,
    "add SOURCE": FILES,
}


class Finder(ExclusiveCompletionFinder):
    """argcomplete, but zsh shows no "None" beside `--option=value`, and the variable of `$HOME/file` stays one."""

    def quote_completions(self, completions: list[str], quote: str, last_wordbreak: int | None) -> list[str]:
        described = self.get_display_completions()
        for word in completions:
            described.setdefault(word, described.get(word.partition("=")[2], ""))
        quoted = super().quote_completions(completions, quote, last_wordbreak)
        return [re.sub(r"^\\\$(?=\w+/)", "$", word) for word in quoted]


def set_completers(parser: argparse.ArgumentParser, command: str) -> None:
    """Give every argument that takes names or files a `completer`, in `parser` and its subparsers."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                set_completers(child, command)
        metavar = str(action.metavar or action.dest.upper())
        if completer := COMPLETERS.get(f"{command} {metavar}") or COMPLETERS.get(metavar):
            vars(action)["completer"] = completer


def answer(root: argparse.ArgumentParser, commands: Mapping[str, str], parser_of: Callable[[str], Any]) -> None:
    """Write the words to the script and end the process. Only parsers of commands on the line are built."""
    set_completers(root, "")
    children = root.add_subparsers()
    for name, text in commands.items():
        children.add_parser(name, help=text)
    for name in commands.keys() & set(os.environ["COMP_LINE"].split()):
        children.choices[name] = parser_of(name)
        set_completers(children.choices[name], name)
    Finder()(root, always_complete_options=False, default_completer=SuppressCompleter())
