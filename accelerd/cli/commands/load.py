"""accelctl load: load a model, show how far it is, and end when it is ready or has failed."""

from __future__ import annotations

import argparse

from accelerd.base.sizes import human_size
from accelerd.cli.client import failure_of
from accelerd.cli.context import Context, explain_name
from accelerd.cli.failure import Exit, Failure
from accelerd.cli.progress import follow
from accelerd.cli.text import span


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")


def run(context: Context, args: argparse.Namespace) -> int:
    started = context.clock.monotonic()
    try:
        last = follow(context.out, args.model, context.client.events("load", model=args.model))
    except Failure as failure:
        raise explain_name(context, args.model, failure) from None
    if last.get("event") == "error":
        raise load_failure(context, args.model, last.get("error") or {})
    seconds = context.clock.monotonic() - started
    context.out.result({"model": args.model, "seconds": round(seconds, 3), **last})
    used = last.get("memory_used") or last.get("memory")
    facts = span(seconds) + (f", {human_size(used)}" if used else "")
    ready = context.out.style("ready", "green")
    context.out.line(f"{args.model} is {ready} ({facts})")
    return Exit.OK


def load_failure(context: Context, model: str, error: dict[str, object]) -> Failure:
    """Why it did not load, after the engine's last lines."""
    failure = explain_name(context, model, failure_of(error))
    if not failure.hint and failure.code in ("model_failed", "model_backing_off"):
        failure.hint = f"all of its output: accelctl logs {model}; its command line: accelctl explain {model}"
    return failure
