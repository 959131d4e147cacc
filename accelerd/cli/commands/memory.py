"""accelctl memory: what uses the memory of this machine, what was measured of models, and discarding that."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from accelerd.cli import watching
from accelerd.cli.context import Context, explain_name
from accelerd.cli.failure import ExitStatus, Failure
from accelerd.cli.local_machine import LocalMachine, source
from accelerd.cli.memory_view import show, show_learned
from accelerd.cli.text import count, span
from accelerd.cli.time_of_day import seconds_since
from accelerd.cli.watching import Fetch

EPILOG = """\
Each part of a bar starts with the letter of its line. Memory that is reserved but not in use is drawn lighter.
With --json and --watch: one JSON object per line, every second.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="refresh every second until Ctrl-C")
    actions = parser.add_subparsers(dest="action", metavar="learned|forget", required=False)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON for programs")
        return made

    action("learned", "show what was measured of models, beside the estimates")
    forget = action("forget", "discard what was measured of a model, so that it is estimated again")
    which = forget.add_mutually_exclusive_group(required=True)
    which.add_argument("model", nargs="?", metavar="MODEL")
    which.add_argument("--all", action="store_true", help="all models")


def run(context: Context, args: argparse.Namespace) -> int:
    if args.action == "learned":
        return learned(context)
    if args.action == "forget":
        return forget(context, args)
    ask = asking(context)
    if args.watch:
        return watch(context, ask)
    answer = ask()
    context.out.result(answer)
    show(context.out, answer)
    return ExitStatus.OK


def asking(context: Context) -> Fetch:
    """The daemon, or this process when there is none."""
    machine: LocalMachine | None = None

    def directly() -> dict[str, Any]:
        nonlocal machine
        machine = machine or LocalMachine(context)
        return machine.look()

    return source(context, "memory", directly)


def watch(context: Context, ask: Fetch, pause: Callable[[float], None] = time.sleep) -> int:
    """Until Ctrl-C."""
    return watching.watch(context, ask, show, pause)


def learned(context: Context) -> int:
    answer = context.client.get("memory/learned")
    context.out.result(answer)
    show_learned(context.out, answer, ago)
    return ExitStatus.OK


def ago(at: float | None) -> str:
    """How long ago that was, of seconds since 1970."""
    return span(seconds_since(at)) if at else "-"


def forget(context: Context, args: argparse.Namespace) -> int:
    query = {"all": 1} if args.all else {"model": args.model}
    try:
        answer = context.client.post("memory/forget", **query)
    except Failure as failure:
        raise explain_name(context, args.model or "", failure) from None
    context.out.result(answer)
    number = answer.get("forgotten") or 0
    whose = "" if args.all else f" of {args.model}"
    context.out.line(
        f"discarded {count(number, 'measurement')}{whose}" if number else f"nothing has been measured{whose}"
    )
    return ExitStatus.OK
