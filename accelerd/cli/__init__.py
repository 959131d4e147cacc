"""accelctl, the command line: finds the command, gives it its context, turns what it raises into an exit status.

Command modules are imported only when they are asked for: accelctl must start fast. Commands talk to the daemon over
its control socket and to nothing else, except `config`, `add`, `devices`, `memory`, `fit` and `doctor`, which look at
this machine, and `fit` of an address.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NoReturn, TextIO

from accelerd import __version__
from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.base.ports import Roots
from accelerd.cli.connect import EXITS, DaemonClient
from accelerd.cli.context import Command, Context, name_mistakes, unknown_name
from accelerd.cli.failure import ExitStatus, Failure, usage
from accelerd.cli.output import CliOutput
from accelerd.cli.text import nearest

COMMANDS = {
    "status": "show what is loaded, how much memory it uses and what is waiting",
    "models": "list all configured models",
    "routes": "show routes with what may answer their requests: state, queue, failures, shares",
    "load": "load a model and wait until it is ready",
    "unload": "stop a model when its running requests have ended, or at once with --force",
    "yield": "unload models from the GPU for a game or another program, until resume",
    "resume": "let models use the GPU again after yield",
    "reset": "clear the failures of a model so that it can be loaded again",
    "monitor": "print events as they happen: models, devices, jobs, memory",
    "logs": "print the output of a model's engine",
    "explain": "explain how a model runs and why: command line, placement, history",
    "chat": "chat with a model",
    "add": "add a model to the configuration",
    "download": "download the files of a model without adding it",
    "remove": "remove models that `accelctl add` added",
    "tune": "benchmark a model with several settings and save the fastest",
    "toolbox": "list, refresh and pin the toolboxes that models run in",
    "config": "check, show or describe the configuration",
    "reload": "read the configuration again; unchanged models keep running",
    "memory": "show what uses memory, what waits for it, and what was measured",
    "fit": "check whether a model would fit, with which context, and how fast it would be",
    "remotes": "show the servers elsewhere, whether they answer, and their models",
    "devices": "show GPUs and NPUs, their load and the users of their memory",
    "doctor": "find problems on this machine and show how to fix them",
    "version": "print the versions of accelctl and of the daemon",
}
MODULES = {  # of commands that share one, or that are called like a keyword; all others have a module of their name
    "load": "model", "unload": "model", "reset": "model", "logs": "model", "download": "model", "reload": "daemon",
    "version": "daemon", "yield": "yield_", "resume": "yield_",
}  # fmt: skip
HABITS = {  # what other programs call a command
    "list": "models", "ls": "models", "ps": "status", "top": "status", "run": "chat", "pull": "add", "start": "load",
    "stop": "unload", "rm": "remove", "delete": "remove", "show": "explain", "info": "explain",
}  # fmt: skip
UPGRADE = "to upgrade accelerd, run ./packaging/install after git pull; a toolbox: accelctl toolbox refresh"
OTHERS = {  # commands of other programs that are none here, and what to do instead
    "serve": "accelerd runs as a service: systemctl --user start accelerd; in a terminal: accelerd",
    "restart": "restart the service: systemctl --user restart accelerd; a model: accelctl unload NAME, then load it",
    "push": "accelerd uploads nothing",
    "update": UPGRADE,
    "upgrade": UPGRADE,
    "create": "settings of a model are keys of its table in accelerd.toml; see: accelctl config schema",
    "cp": "another name for a model is one of its aliases; see: accelctl add --help",
    "search": "search on https://huggingface.co/models?library=gguf, then: accelctl add hf:ORG/REPO",
}

EXIT_STATUSES = """\
exit status:
  0  success                           4  the configuration is not valid
  1  failure                           5  no model or toolbox of that name
  2  wrong usage                     130  interrupted (Ctrl-C)
  3  accelerd cannot be reached
"""


class CommandParser(argparse.ArgumentParser):
    """argparse, with usage errors raised as a Failure of one line, and the options that every command has."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)
        shared_options(self)

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Options may stand between the other words, except where a command has commands of its own."""
        nested = any(isinstance(action, argparse._SubParsersAction) for action in self._actions)
        return self.parse_args(words) if nested else self.parse_intermixed_args(words)

    def error(self, message: str) -> NoReturn:
        raise usage(message, f"see: {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    if "_ARGCOMPLETE" in os.environ:  # a completion script of contrib/completions asks
        from accelerd.cli.completion import answer

        answer(overview(), COMMANDS, lambda name: command_parser(name)[1])
    given = list(sys.argv[1:] if argv is None else argv)
    with open(os.devnull, "r+") as nowhere:  # for a stream that the shell has closed
        return run(given, os.environ, sys.stdin or nowhere, sys.stdout or nowhere, sys.stderr or nowhere)


def run(argv: Sequence[str], env: Mapping[str, str], stdin: TextIO, stdout: TextIO, stderr: TextIO) -> int:
    """One run of accelctl; everything it touches is passed in."""
    out = CliOutput(stdout, stderr, env, json_mode="--json" in argv)
    try:
        status = dispatch(argv, env, stdin, out)
        stdout.flush()
    except Failure as failure:
        out.failure(failure)
        status = failure.exit
    except AccelError as error:  # from the rooms that `config`, `add` and `doctor` use directly
        status = EXITS.get(error.code, ExitStatus.FAILED)
        out.failure(Failure(error.message, exit=status, code=error.code, fields=dict(error.fields)))
    except KeyboardInterrupt as end:
        out.note("; ".join(["interrupted", *end.args]))
        status = ExitStatus.INTERRUPTED
    except BrokenPipeError:
        out.silence()
        status = ExitStatus.OK
    except OSError as error:
        what = f"cannot use {error.filename}" if error.filename else "cannot write the output"
        if not error.filename:
            out.silence()
        out.failure(Failure(f"{what}: {error.strerror or error}"))
        status = ExitStatus.FAILED
    except SystemExit as end:  # argparse after --help and --version
        return end.code if isinstance(end.code, int) else ExitStatus.FAILED
    return int(status)


def dispatch(argv: Sequence[str], env: Mapping[str, str], stdin: TextIO, out: CliOutput) -> int:
    shared, words = split(argv)
    at = place_of_command(words)
    first = overview()
    if at is None or {"-h", "--help", "--version"} & {*words[:at]}:
        first.parse_args(words[:at])
        first.print_help(out.stdout)
        return ExitStatus.USAGE if argv else ExitStatus.OK
    typed, rest = words[at], [*words[:at], *words[at + 1 :]]
    if typed == "help":
        asked = command_parser(known_command(rest[0]))[1] if rest else first
        asked.print_help(out.stdout)
        return ExitStatus.OK
    command, parser = command_parser(known_command(typed))
    args = parser.parse(rest)
    out.json_mode = shared.json
    roots = Roots.from_env(env)
    named = shared.socket or env.get(names.ENV_SOCKET)
    client = DaemonClient(Path(named or roots.control_socket), sudo_user=env.get("SUDO_USER", ""))
    context = Context(roots=roots, client=client, out=out, stdin=stdin, env=env)
    try:
        return command.run(context, args)
    except Failure as failure:
        model = getattr(args, "model", None)
        if model and failure.code == "model_not_found" and not failure.hint:
            raise unknown_name(context, model) from None
        if not named and failure.code in ("not_running", "connection_lost"):
            from accelerd.cli.programs import SystemPrograms, explain_unreachable

            explain_unreachable(failure, SystemPrograms(env))
            name_mistakes(failure, context)
        raise


def command_parser(name: str) -> tuple[Command, CommandParser]:
    module = importlib.import_module(f"accelerd.cli.commands.{MODULES.get(name, name)}")
    command: Command = getattr(module, "COMMANDS", {}).get(name) or Command(
        module.add_arguments, module.run, getattr(module, "EPILOG", "")
    )
    parser = CommandParser(prog=f"accelctl {name}", description=COMMANDS[name], epilog=command.epilog or None)
    command.add_arguments(parser)
    return command, parser


def place_of_command(words: Sequence[str]) -> int | None:
    """Where the command stands: first, or behind options, which may have values."""
    if not words or not words[0].startswith("-"):
        return 0 if words else None
    return next((at for at, word in enumerate(words) if word in COMMANDS or word in HABITS), None)


def known_command(typed: str) -> str:
    """The command that was meant, also by what other programs call it. Raises Failure."""
    if typed in COMMANDS:
        return typed
    if typed in HABITS:
        return HABITS[typed]
    guess = nearest(typed, [*COMMANDS, *HABITS], cutoff=0.6)
    hint = OTHERS.get(typed) or (f"did you mean {guess}?" if guess else "see: accelctl --help")
    raise usage(f"there is no command {typed}", hint)


def split(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options that every command has, wherever they stand before "--", and the other words."""
    end = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    shared_options(parser)
    try:
        shared, rest = parser.parse_known_args(argv[:end])
    except argparse.ArgumentError as error:
        raise usage(str(error), "see: accelctl --help") from None
    return shared, [*rest, *argv[end:]]


def overview() -> CommandParser:
    """The parser of everything before the command's own arguments."""
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = CommandParser(
        prog="accelctl", usage="accelctl [--socket PATH] [--json] COMMAND …", epilog=f"{habits()}\n{EXIT_STATUSES}",
        description=f"Control accelerd, the daemon for the local AI models of this machine.\n\ncommands:\n{listing}",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"accelctl {__version__}")
    return parser


def habits() -> str:
    """The other names of commands, as a paragraph."""
    named = [f"{' and '.join(word for word in HABITS if HABITS[word] == name)} ({name})" for name in
             dict.fromkeys(HABITS.values())]  # fmt: skip
    return fill(f"Other names work, too: {', '.join(named)}.", 78) + "\n"


def shared_options(parser: argparse.ArgumentParser) -> None:
    """Options that may be given anywhere on the line."""
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument(
        "--socket",
        metavar="PATH",
        help=f"the control socket of accelerd; default: ${names.ENV_SOCKET}, else that of this user's accelerd",
    )
