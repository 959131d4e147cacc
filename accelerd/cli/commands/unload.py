"""accelctl unload: stop a model after its running requests, or with --force at once, and end when it is proven gone."""

from __future__ import annotations

import argparse

from accelerd.cli.client import failure_of
from accelerd.cli.context import Context, explain_name
from accelerd.cli.failure import Exit, Failure
from accelerd.cli.progress import follow
from accelerd.cli.text import span


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--force", action="store_true", help="end running requests instead of waiting for them")


def run(context: Context, args: argparse.Namespace) -> int:
    started = context.clock.monotonic()
    events = context.client.events("unload", model=args.model, force=1 if args.force else None)
    try:
        last = follow(context.out, args.model, events)
    except Failure as failure:
        raise explain_name(context, args.model, failure) from None
    if last.get("event") == "error":
        raise explain_name(context, args.model, failure_of(last.get("error") or {}))
    seconds = context.clock.monotonic() - started
    context.out.result({"model": args.model, "seconds": round(seconds, 3), **last})
    context.out.line(f"{args.model} is stopped ({span(seconds)})")
    return Exit.OK
