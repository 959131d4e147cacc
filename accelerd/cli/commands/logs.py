"""accelctl logs: what a model's engine printed, and with -f what it prints from now on."""

from __future__ import annotations

import argparse

from accelerd.cli.context import Context, explain_name
from accelerd.cli.failure import Exit, Failure
from accelerd.cli.text import printable

EPILOG = "Older lines, of earlier runs too, are in the journal: journalctl --user ACCELERD_MODEL=MODEL"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what the engine prints next")
    parser.add_argument("-n", "--lines", type=lines, metavar="N", help="only the last N lines")


def lines(text: str) -> int:
    number = int(text) if text.isdecimal() else -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected a number of lines, got {text!r}")
    return number


def run(context: Context, args: argparse.Namespace) -> int:
    out = context.out
    any_line = False
    try:
        for line in context.client.lines("logs", model=args.model, lines=args.lines, follow=args.follow):
            any_line = True
            out.json_line({"line": line})
            out.line(printable(line))
            if args.follow:
                out.stdout.flush()
    except Failure as failure:
        raise explain_name(context, args.model, failure) from None
    if not any_line and not out.json_mode:
        out.note(f"{args.model} has printed nothing yet")
    return Exit.OK
