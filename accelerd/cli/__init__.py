"""accelctl: the user's tool. Finds the command, gives it its context, turns what it raises into an exit status.

Each command is a module of its own, imported only when it is the one asked for: start-up time is a feature here. Talks
to nothing but the daemon, over the session bus or its unix socket, except for `config`, `add`, `devices`, `memory`,
`fit` and `doctor`, which look at this machine, and for `fit` of an address.
"""

from __future__ import annotations

import argparse
import importlib
import keyword
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import NoReturn, TextIO, cast

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.base.ports import Roots
from accelerd.cli.client import EXITS
from accelerd.cli.context import Command, Context
from accelerd.cli.failure import Exit, Failure
from accelerd.cli.output import Output
from accelerd.cli.text import nearest
from accelerd.cli.way import Chooser

COMMANDS = {
    "status": "what is loaded, what it takes, who waits",
    "models": "every configured model",
    "load": "load a model and wait until it is ready",
    "unload": "stop a model, after its running requests or with --force at once",
    "yield": "empty the GPU for a game, or another program, until resume",
    "resume": "end what yield began: models may use the GPU again",
    "reset": "forget the failures of a model, so that it is tried again",
    "monitor": "what happens, as it happens: models, devices, jobs, yields, pins",
    "logs": "what a model's engine printed",
    "explain": "why a model runs as it does: command line, placement, history",
    "chat": "talk to a model",
    "add": "add a model to the configuration",
    "remove": "remove a model that `accelctl add` added",
    "tune": "measure a model in several ways of running it, and keep the best",
    "toolbox": "list, refresh and pin the toolboxes that models run in",
    "config": "check, show or describe the configuration",
    "reload": "read the configuration again; unchanged models keep running",
    "memory": "who holds which memory, what waits for some; what was learned of models",
    "fit": "will a model run here, with what context, how fast; before it is downloaded",
    "devices": "GPUs and NPUs: what they are, what they do, who uses their memory",
    "doctor": "what is missing on this machine, and the command that fixes it",
    "version": "versions of accelctl and of the daemon",
}

EXIT_STATUSES = """\
exit status:
  0  done                              4  the configuration is not valid
  1  it failed                         5  no model, or toolbox, has that name
  2  wrong usage                     130  interrupted (Ctrl-C)
  3  accelerd is not reachable
"""


class Parser(argparse.ArgumentParser):
    """argparse with one line on an error instead of a page."""

    def error(self, message: str) -> NoReturn:
        raise Failure(message, exit=Exit.USAGE, code="usage", hint=f"see: {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point: returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    return run(given, os.environ, sys.stdin, sys.stdout, sys.stderr)


def run(argv: Sequence[str], env: Mapping[str, str], stdin: TextIO, stdout: TextIO, stderr: TextIO) -> int:
    """One run with everything it touches passed in."""
    out = Output(stdout, stderr, env, json_mode="--json" in argv)
    try:
        status = dispatch(argv, env, stdin, out)
        stdout.flush()
    except Failure as failure:
        out.failure(failure)
        status = failure.exit
    except AccelError as error:  # from the rooms that `config`, `add` and `doctor` use directly
        status = EXITS.get(error.code, Exit.FAILED)
        out.failure(Failure(error.message, exit=status, code=error.code, fields=dict(error.fields)))
    except KeyboardInterrupt:
        out.note("interrupted")
        status = Exit.INTERRUPTED
    except BrokenPipeError:
        out.silence()
        status = Exit.OK
    except SystemExit as end:  # argparse after --help and --version
        return end.code if isinstance(end.code, int) else Exit.FAILED
    return int(status)


def dispatch(argv: Sequence[str], env: Mapping[str, str], stdin: TextIO, out: Output) -> int:
    before, name, after = split(argv)
    first = overview()
    args = first.parse_args(before)
    if name is None:
        first.print_help(out.stdout)
        return Exit.USAGE if argv else Exit.OK
    if name not in COMMANDS:
        guess = nearest(name, COMMANDS)
        hint = f"did you mean {guess}?" if guess else "see: accelctl --help"
        raise Failure(f"there is no command {name}", exit=Exit.USAGE, code="usage", hint=hint)
    command, parser = command_parser(name)
    rest = parser.parse_args(after)
    out.json_mode = args.json or rest.json
    roots = Roots.from_env(env)
    with closing(Chooser(roots, env, rest.socket or args.socket)) as client:
        return command.run(Context(roots=roots, client=client, out=out, stdin=stdin, env=env), rest)


def command_parser(name: str) -> tuple[Command, Parser]:
    """The module of a command and what it understands."""
    module = f"{name}_" if keyword.iskeyword(name) else name
    command = cast(Command, importlib.import_module(f"accelerd.cli.commands.{module}"))
    parser = Parser(prog=f"accelctl {name}", description=COMMANDS[name], epilog=getattr(command, "EPILOG", None),
                    formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)  # fmt: skip
    shared_options(parser)
    command.add_arguments(parser)
    return command, parser


def split(argv: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """The options before the command, the command, and everything after it."""
    position = 0
    while position < len(argv) and argv[position].startswith("-"):
        position += 2 if argv[position] == "--socket" else 1
    name = argv[position] if position < len(argv) else None
    return list(argv[:position]), name, list(argv[position + 1 :])


def overview() -> Parser:
    """The parser of everything before the command's own arguments."""
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = Parser(
        prog="accelctl", usage="accelctl [--socket PATH] [--json] COMMAND …", allow_abbrev=False,
        description=f"Talk to accelerd, the daemon for the local AI models of this machine.\n\ncommands:\n{listing}",
        epilog=EXIT_STATUSES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    shared_options(parser)
    parser.add_argument("--version", action="version", version=version_line())
    return parser


def shared_options(parser: argparse.ArgumentParser) -> None:
    """Options that may stand before and after the command."""
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument(
        "--socket",
        metavar="PATH",
        help=f"this socket, instead of the session bus, ${names.ENV_SOCKET} or the usual one",
    )


def version_line() -> str:
    from accelerd import __version__

    return f"accelctl {__version__}"
