"""accelctl yield: empty the GPU for a game or another program, show who leaves, and end when it is empty."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from accelerd.base.sizes import human_size
from accelerd.cli.client import failure_of
from accelerd.cli.context import Context
from accelerd.cli.daytime import seconds_until, time_in
from accelerd.cli.failure import Exit, Failure
from accelerd.cli.output import Output
from accelerd.cli.progress import WORDS
from accelerd.cli.text import count, printable
from accelerd.config.units import parse_duration

EPILOG = """\
Idle models leave at once; those that work have 10 s to end their requests. Until the time is over, or accelctl resume,
requests for them are refused (503, with Retry-After). What is pinned or preloaded comes back by itself.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    end = parser.add_mutually_exclusive_group()
    end.add_argument("--for", dest="span", metavar="TIME", help='for so long: "2h", "45m"; else until accelctl resume')
    end.add_argument("--until", metavar="HH:MM", help="until this time of day")
    parser.add_argument("--now", action="store_true", help="end running requests instead of waiting for them")
    parser.add_argument("--all", action="store_true", help="models in main memory too")


def run(context: Context, args: argparse.Namespace) -> int:
    seconds = wanted(args)
    query = {"for": seconds, "now": 1 if args.now else None, "all": 1 if args.all else None}
    last = follow(context.out, context.client.events("yield", **query))
    if last.get("event") == "error":
        raise failure_of(last.get("error") or {})
    context.out.result(last)
    report(context.out, last)
    return Exit.FAILED if last.get("stuck") or last.get("event") != "yielded" else Exit.OK


def wanted(args: argparse.Namespace) -> float | None:
    """Seconds; None: until resume."""
    if args.until is not None:
        return round(seconds_until(args.until), 3)
    if args.span is None:
        return None
    try:
        seconds = parse_duration(args.span)
    except ValueError as error:
        raise Failure(f"--for: expected {error}", exit=Exit.USAGE, code="usage") from None
    if seconds <= 0:
        raise Failure("--for: expected a duration longer than zero", exit=Exit.USAGE, code="usage")
    return seconds


def follow(out: Output, events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Say what each model does, once; the last event."""
    said: dict[str, str] = {}
    last: dict[str, Any] = {}
    for last in events:
        for model in last.get("models") or () if last.get("event") == "progress" else ():
            state = str(model["state"])
            text = WORDS.get(state, state)
            if model.get("leases"):
                text += f" ({count(model['leases'], 'request')})"
            if said.get(model["model"]) != text and not out.json_mode:
                said[model["model"]] = text
                out.note(f"{printable(model['model'])}: {text}")
    return last


def report(out: Output, last: dict[str, Any]) -> None:
    """What is free now, and until when."""
    if last.get("event") != "yielded":
        out.line("the models may use the memory again: accelctl resume was said, or the time is over")
        return
    what, freed = printable(str(last["what"])), sum(pool["size"] for pool in last["freed"])
    gone = [model["model"] for model in last["models"] if model["model"] not in last["stuck"]]
    facts = f"{human_size(freed)} back from {', '.join(map(printable, gone))}" if gone else "no model was there"
    until = f" until {time_in(last['remaining'])}" if last.get("remaining") is not None else ""
    out.line(f"{what} is {out.style('yours', 'green')}{until} ({facts}); take it back: accelctl resume")
    for name in last["stuck"]:
        out.wrapped(f"{name} cannot be ended, and keeps its memory: accelctl status {name}", indent="  ", first="! ")
