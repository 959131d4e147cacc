"""accelctl memory: what uses the memory of this machine, what was measured of models, and discarding that."""

from __future__ import annotations

import argparse
from typing import Any

from accelerd.cli.context import Context
from accelerd.cli.failure import ExitStatus
from accelerd.cli.live_page import LivePage
from accelerd.cli.local_machine import LocalMachine
from accelerd.cli.memory_view import show, show_learned
from accelerd.cli.text import count

EPILOG = """\
Each part of a bar starts with the letter of its line. Memory that is reserved but not in use is drawn lighter.
With --json and --watch: one JSON object per line, every second.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="refresh every second until Ctrl-C")
    actions = parser.add_subparsers(dest="action", metavar="learned|forget", required=False)
    text = "show what was measured of models, beside the estimates"
    actions.add_parser("learned", help=text, description=text)
    text = "discard what was measured of a model, so that it is estimated again"
    forget = actions.add_parser("forget", help=text, description=text)
    which = forget.add_mutually_exclusive_group(required=True)
    which.add_argument("model", nargs="?", metavar="MODEL")
    which.add_argument("--all", action="store_true", help="all models")


def run(context: Context, args: argparse.Namespace) -> int:
    if args.action == "learned":
        return learned(context)
    if args.action == "forget":
        return forget(context, args)
    return asked(context).report(again=args.watch)


def asked(context: Context) -> LivePage:
    def fetch() -> dict[str, Any]:
        return {"source": "daemon", **context.client.get("memory")}

    return LivePage(context, fetch, lambda: LocalMachine(context.roots, context.clock).memory_page, show)


def learned(context: Context) -> int:
    answer = context.client.get("memory/learned")
    context.out.result(answer)
    show_learned(context.out, answer)
    return ExitStatus.OK


def forget(context: Context, args: argparse.Namespace) -> int:
    query = {"all": 1} if args.all else {"model": args.model}
    answer = context.client.post("memory/forget", **query)
    context.out.result(answer)
    number = answer.get("forgotten") or 0
    whose = "" if args.all else f" of {args.model}"
    context.out.line(
        f"discarded {count(number, 'measurement')}{whose}" if number else f"nothing has been measured{whose}"
    )
    return ExitStatus.OK
