"""accelctl reset: forget the failures of a model, so that the next request tries it again."""

from __future__ import annotations

import argparse

from accelerd.cli.context import Context, explain_name
from accelerd.cli.failure import Exit, Failure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")


def run(context: Context, args: argparse.Namespace) -> int:
    try:
        answer = context.client.post("reset", model=args.model)
    except Failure as failure:
        raise explain_name(context, args.model, failure) from None
    context.out.result({"model": args.model, **answer})
    context.out.line(f"{args.model} is {answer.get('state', 'reset')}; load it: accelctl load {args.model}")
    return Exit.OK
