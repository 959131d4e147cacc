"""accelctl yield and resume: free the GPU for a game or another program, and let models use it again."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from accelerd.base.names import accelctl
from accelerd.base.sizes import human_size
from accelerd.cli.context import Command, Context, no_arguments
from accelerd.cli.failure import ExitStatus, usage
from accelerd.cli.output import CliOutput
from accelerd.cli.progress import WORDS
from accelerd.cli.text import count, printable
from accelerd.cli.time_of_day import seconds_until, time_in
from accelerd.config.units import parse_duration

YIELD_EPILOG = """\
Idle models are unloaded at once, busy ones get 10 s to finish their requests. Until the time is over, or until accelctl
resume, requests for them are refused (503, with Retry-After). Afterwards pinned and preloaded models are loaded again.
"""
RESUME_EPILOG = "Also ends what GameMode or suspend began. The exit status is 0 also when nothing was yielded."


def yield_arguments(parser: argparse.ArgumentParser) -> None:
    end = parser.add_mutually_exclusive_group()
    end.add_argument(
        "--for", dest="span", metavar="TIME", help='for this long: "2h", "45m"; default: until accelctl resume'
    )
    end.add_argument("--until", metavar="HH:MM", help="until this time of day")
    parser.add_argument("--now", action="store_true", help="abort running requests instead of waiting for them")
    parser.add_argument("--all", action="store_true", help="also unload models that are in main memory")


def yield_memory(context: Context, args: argparse.Namespace) -> int:
    seconds = wanted(args)
    query = {"for": seconds, "now": 1 if args.now else None, "all": 1 if args.all else None}
    last = follow(context.out, context.client.events("yield", **query))
    context.out.result(last)
    report(context.out, last)
    return ExitStatus.FAILED if last.get("stuck") or last.get("event") != "yielded" else ExitStatus.OK


def wanted(args: argparse.Namespace) -> float | None:
    """Seconds; None: until resume."""
    if args.until is not None:
        return round(seconds_until(args.until), 3)
    if args.span is None:
        return None
    try:
        seconds = parse_duration(args.span)
    except ValueError as error:
        raise usage(f"--for: expected {error}") from None
    if seconds <= 0:
        raise usage("--for: expected a duration longer than zero")
    return seconds


def follow(out: CliOutput, events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Print each state of each model once; return the last event."""
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


def report(out: CliOutput, last: dict[str, Any]) -> None:
    """What is free now, and until when."""
    if last.get("event") != "yielded":
        out.line("models may use the memory again: it was resumed, or the time is over")
        return
    what, freed = printable(str(last["what"])), sum(pool["size"] for pool in last["freed"])
    gone = [model["model"] for model in last["models"] if model["model"] not in last["stuck"]]
    facts = f"{human_size(freed)} freed by {', '.join(map(printable, gone))}" if gone else "no model was using it"
    until = f" until {time_in(last['remaining'])}" if last.get("remaining") is not None else ""
    out.line(f"{what} is {out.style('free', 'green')}{until} ({facts}); to end this: accelctl resume")
    for name in last["stuck"]:
        text = f"{name} could not be stopped and still holds its memory; see: {accelctl('status', name)}"
        out.wrapped(text, indent="  ", first="! ")


def resume(context: Context, args: argparse.Namespace) -> int:
    answer = context.client.post("resume")
    out = context.out
    out.result(answer)
    if not answer.get("resumed"):
        out.line("nothing was yielded")
        return ExitStatus.OK
    back = ", ".join(map(printable, answer.get("back") or ()))
    what = printable(str(answer.get("what") or "the memory"))
    follows = f"loading again: {back}" if back else "they are loaded on the next request"
    out.line(f"models may use {what} again; {follows}")
    return ExitStatus.OK


COMMANDS = {
    "yield": Command(yield_arguments, yield_memory, YIELD_EPILOG),
    "resume": Command(no_arguments, resume, RESUME_EPILOG),
}
