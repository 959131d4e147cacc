"""accelctl monitor: prints events of accelerd as they happen, until Ctrl-C. Reads GET events and polls nothing.

When accelerd ends it waits for the next one. It never has systemd start a service that somebody stopped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from accelerd.base import names
from accelerd.base.sizes import human_size
from accelerd.cli.context import Context
from accelerd.cli.failure import ExitStatus, Failure, no_model
from accelerd.cli.output import CliOutput
from accelerd.cli.programs import ProgramRunner, SystemPrograms, asleep
from accelerd.cli.text import count, printable
from accelerd.cli.time_of_day import moment

EPILOG = """\
Events are: states of models and devices, progress of jobs, memory, and changes of accelerd itself (configuration,
yields, pins, its start and end). With --json: one object per line; "at" is the local time.
docs/control.md describes them.
"""
GOOD = frozenset({"ready", "done", "running", "recovered"})
BAD = frozenset({"failed", "backoff", "killing", "timeout", "gone", "removed", "reset"})
RETRY = 1.0  # s between two attempts to reach an accelerd that has ended

Event = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", metavar="MODEL", nargs="*", help="only events of these models")


def run(context: Context, args: argparse.Namespace) -> int:
    try:
        for event in watch(context, args.models, SystemPrograms(context.env)):
            show(context.out, {"at": moment(), **event})
    except KeyboardInterrupt:
        pass  # how one ends it
    return ExitStatus.OK


def watch(
    context: Context, wanted: Collection[str], programs: ProgramRunner, pause: Callable[[float], None] = time.sleep
) -> Iterator[Event]:
    """Events without end. Failure when there is no daemon to begin with."""
    status = context.client.get("status")
    chosen = resolve(status, wanted)
    models = count(len(status.get("models") or ()), "model")
    note = f"watching {', '.join(sorted(chosen)) or models}; stop with Ctrl-C"
    while True:
        kind = None
        try:
            with context.client.watch("events") as events:
                if note:
                    context.out.note(note)
                    note = ""
                for event in events:
                    kind = event.get("event")
                    if kind == "lost" or concerns(event, chosen):
                        yield event
        except Failure as failure:
            if failure.code not in ("connection_lost", "shutting_down"):
                raise
        if kind == "lost":
            continue  # accelerd has ended the stream because this program read too slowly
        yield {"event": "manager", "change": "state", "state": "gone"}
        while not back(context, programs):
            pause(RETRY)
        yield {"event": "manager", "change": "state", "state": "back"}


def back(context: Context, programs: ProgramRunner) -> bool:
    """Is there an accelerd again? Connects only where that does not have systemd start one."""
    if asleep(programs):
        return False
    try:
        return context.client.get("status").get("state") == "running"
    except Failure:
        return False


def resolve(status: dict[str, Any], wanted: Collection[str]) -> frozenset[str]:
    """The configured names of the models that were typed. Failure for a name that no model has."""
    models = status.get("models") or ()
    names_of = {alias: str(m["name"]) for m in models for alias in (*(m.get("aliases") or ()), m["name"])}
    for typed in wanted:
        if typed not in names_of:
            raise no_model(typed, names_of, "see: accelctl models")
    return frozenset(names_of[typed] for typed in wanted)


def concerns(event: Event, chosen: Collection[str]) -> bool:
    return not chosen or bool({event.get("model"), event.get("subject")} & set(chosen))


# --- for people -----------------------------------------------------------------------------------------------


def show(out: CliOutput, event: Event) -> None:
    """One line, flushed at once: it may be read through a pipe."""
    out.json_line(event)
    subject, text = LINES.get(str(event.get("event")), of_other)(event)
    words = {event.get("result") or event.get("state"), event.get("change")}
    style = "red" if words & BAD else "green" if words & GOOD else ""
    time = out.style(event["at"][11:19], "dim")
    out.line(f"{time}  {out.style(printable(subject), 'bold')}: {out.style(printable(text), style)}")
    out.stdout.flush()


def because(reason: object) -> str:
    return f" ({reason})" if reason else ""


def of_model(event: Event) -> tuple[str, str]:
    name, change = str(event["model"]), event.get("change")
    if change == "outdated":
        return name, "its configuration has changed; it restarts when its running requests have ended"
    if change:
        return name, f"{change}{because(event.get('state'))}"
    why = (event.get("error") or {}).get("message") or event.get("reason")
    return name, f"{event.get('before')} → {event['state']}{because(why)}"


def of_device(event: Event) -> tuple[str, str]:
    return f"{event.get('name')} ({event['device']})", f"{event.get('change')}{because(event.get('reason'))}"


def of_job(event: Event) -> tuple[str, str]:
    subject = f"job {event['job']}, {event['kind']}" + (f" {event['subject']}" if event.get("subject") else "")
    if event["state"] != "done":
        return subject, str(event.get("phase") or event["state"])
    return subject, f"{event.get('result')}{because((event.get('error') or {}).get('message'))}"


def of_memory(event: Event) -> tuple[str, str]:
    pools = [
        f"{pool.get('label') or pool['id']}: {human_size(pool.get('free'))} of {human_size(pool.get('capacity'))} free"
        for pool in event.get("pools") or ()
    ]
    return "memory", ", ".join(pools) or "changed"


def of_manager(event: Event) -> tuple[str, str]:
    """accelerd as a whole: `change` says what of it."""
    change, reason = event.get("change"), event.get("reason")
    if change == "pin":
        who, verb = event.get("who") or "a program", "holds it in memory" if event.get("hold") else "keeps it loaded"
        text = f"{who} {verb}{because(reason)}" if event.get("pinned") else f"{who} releases it"
        return str(event.get("model")), text
    if change == "yield":
        if given := event.get("yielded"):
            return "yield", f"{given.get('what')} is yielded{because(given.get('why'))}"
        return "yield", "models may use all memory again"
    if change == "power":
        return names.PROGRAM, f"saving power{because(reason)}" if reason else "no longer saving power"
    if change == "configuration":
        if event.get("in_use") is False:
            return names.PROGRAM, "the configuration on disk has errors and is not in use: accelctl config check"
        return names.PROGRAM, "a new configuration is in effect"
    return names.PROGRAM, f"{event.get('state')}{because(event.get('degraded'))}"


def of_lost(event: Event) -> tuple[str, str]:
    return names.PROGRAM, f"{count(int(event.get('events') or 0), 'event')} lost: they were printed too slowly"


def of_other(event: Event) -> tuple[str, str]:
    facts = [f"{key} {value}" for key, value in event.items() if key not in ("event", "at")]
    return str(event.get("event")), ", ".join(facts)


LINES: dict[str, Callable[[Event], tuple[str, str]]] = {
    "model": of_model,
    "device": of_device,
    "job": of_job,
    "memory": of_memory,
    "manager": of_manager,
    "lost": of_lost,
}
