"""accelctl monitor: what happens in accelerd, as it happens, until Ctrl-C. Needs the session bus, and polls nothing."""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from accelerd.base import names
from accelerd.cli.client import Reach, not_running
from accelerd.cli.context import Context
from accelerd.cli.daytime import moment
from accelerd.cli.failure import Exit, Failure
from accelerd.cli.output import Output
from accelerd.cli.text import count, nearest, printable

if TYPE_CHECKING:
    from accelerd.cli.bus_events import Event, Mirror
    from accelerd.cli.bus_link import Link, Signal

EPILOG = """\
Told are the states of models and devices, jobs and what they do, yields, pins and holds, new configurations, and when
accelerd itself goes and comes back. With --json: one object a line; "at" is the local time. The same, raw:
  busctl --user monitor org.accelerd1
"""
GOOD, BAD = (
    ("ready", "ok", "done", "running"),
    ("failed", "backoff", "killing", "lost", "quarantined", "timeout", "gone"),
)
WITHIN = 15.0  # s for the first look


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", metavar="MODEL", nargs="*", help="only what concerns these models")


def run(context: Context, args: argparse.Namespace) -> int:
    link = context.client.link()
    if link is None:
        raise no_bus(context.client)
    try:
        for event in watch(context, link, args.models):
            show(context.out, {"at": moment(), **event})
    except KeyboardInterrupt:
        return Exit.OK  # how one leaves it
    raise Failure(
        "the session bus has gone", exit=Exit.UNREACHABLE, code="connection_lost", hint="log in again, then once more"
    )


def no_bus(client: Reach) -> Failure:
    """Why there is nothing to listen to, and what to do."""
    way = client.way()
    if "names it" in way.why:
        hint = f"leave --socket out, and ${names.ENV_SOCKET} unset"
    else:
        hint = way.fix or "without a bus: accelctl status, accelctl memory --watch, journalctl --user -f -u accelerd"
    if f"nobody has the name {names.BUS_NAME}" in way.why:
        try:
            client.get("status")
        except Failure as failure:
            return failure if failure.code != "not_running" else not_running(way.why)
    return Failure(f"nothing can be watched: {way.why}", exit=Exit.UNREACHABLE, code="no_bus", hint=hint)


def watch(context: Context, link: Link, wanted: Collection[str]) -> Iterator[Event]:
    """Events for ever; ends when the bus has gone."""
    from accelerd.cli.bus_events import Mirror
    from accelerd.cli.bus_link import BUS

    mirror = Mirror()
    heard: deque[Signal] = deque()
    with ExitStack() as stack:
        stack.enter_context(link.hearing(heard.append, names.BUS_NAME))
        stack.enter_context(link.hearing(heard.append, BUS, f"{BUS}.NameOwnerChanged", names.BUS_NAME))
        look(link, mirror, heard)
        chosen = resolve(mirror, wanted)
        context.out.note(f"watching {', '.join(sorted(chosen)) or summary(mirror)}; Ctrl-C ends it")
        while True:
            link.wait(lambda: bool(heard) or link.closed)
            if not heard:
                return
            signal = heard.popleft()
            if signal.member == "NameOwnerChanged":
                yield from owner(link, mirror, heard, str(signal.values[2]))
                continue
            yield from (event for event in mirror.hear(signal) if concerns(event, chosen))


def look(link: Link, mirror: Mirror, heard: deque[Signal]) -> None:
    """How all is now. What was signalled before is in it, and nothing new."""
    from accelerd.cli.bus_client import failure
    from accelerd.cli.bus_events import MANAGER_OF_OBJECTS
    from accelerd.cli.bus_link import PROPERTIES, LinkError

    name, path = names.BUS_NAME, names.BUS_PATH
    try:
        asked = link.begin(name, path, f"{MANAGER_OF_OBJECTS}.GetManagedObjects", "()", within=WITHIN, then=heard.clear)
        link.wait(lambda: asked.over)
        objects = asked.result()[0]
        manager = link.call(name, path, f"{PROPERTIES}.GetAll", "(s)", names.BUS_MANAGER, within=WITHIN)[0]
    except LinkError as error:
        raise failure(error) from None
    mirror.begin(manager, objects)


def owner(link: Link, mirror: Mirror, heard: deque[Signal], now: str) -> Iterator[Event]:
    """accelerd has gone, or is back: then everything may be another."""
    if not now:
        yield {"event": "accelerd", "state": "gone", "reasons": []}
        return
    try:
        look(link, mirror, heard)
    except Failure:
        return  # gone already: that is the next signal
    yield {"event": "accelerd", "state": "back", "reasons": []}


def resolve(mirror: Mirror, wanted: Collection[str]) -> frozenset[str]:
    """The configured names of what was typed."""
    known = mirror.models()
    names_of = {alias: name for name, aliases in known.items() for alias in (name, *aliases)}
    for typed in wanted:
        if typed not in names_of:
            guess = nearest(typed, names_of)
            hint = f"did you mean {guess}?" if guess else "see: accelctl models"
            raise Failure(f"no model is called {typed}", exit=Exit.NO_SUCH_MODEL, code="model_not_found", hint=hint)
    return frozenset(names_of[typed] for typed in wanted)


def concerns(event: Event, chosen: Collection[str]) -> bool:
    about = event.get("model") or event.get("subject")
    return not chosen or event["event"] == "accelerd" or about in chosen


def summary(mirror: Mirror) -> str:
    models, devices = mirror.count(names.BUS_MODEL), mirror.count(names.BUS_DEVICE)
    return f"{count(models, 'model')} and {count(devices, 'device')}"


# --- for people -----------------------------------------------------------------------------------------------


def show(out: Output, event: Event) -> None:
    """One line, at once: somebody may read it through a pipe."""
    out.json_line(event)
    subject, text = LINES[event["event"]](event)
    state = str(event.get("result") or event.get("state") or "")
    style = "green" if state in GOOD else "red" if state in BAD else ""
    time = out.style(event["at"][11:19], "dim")
    out.line(f"{time}  {out.style(printable(subject), 'bold')}: {out.style(printable(text), style)}")
    out.stdout.flush()


def of_model(event: Event) -> tuple[str, str]:
    name, change = str(event["model"]), event.get("change")
    if change == "outdated":
        return name, "its configuration has changed; it is restarted when its requests have ended"
    if change:
        return name, f"{change} ({event['state']})"
    why = (event.get("error") or {}).get("message") or event["reason"]
    return name, f"{event['before']} → {event['state']}{f' ({why})' if why else ''}"


def of_device(event: Event) -> tuple[str, str]:
    why = f" ({event['reason']})" if event["reason"] else ""
    change = event.get("change") or f"{event.get('before')} → {event['state']}"
    return f"{event['name']} ({event['device']})", f"{change}{why}"


def of_job(event: Event) -> tuple[str, str]:
    subject = f"job {event['job']}, {event['kind']}" + (f" {event['subject']}" if event["subject"] else "")
    if event["state"] != "done":
        return subject, event["phase"] or event["state"]
    why = (event.get("error") or {}).get("message")
    return subject, f"{event['result']}{f' ({why})' if why else ''}"


def of_yield(event: Event) -> tuple[str, str]:
    if event["yielded"]:
        return "yield", f"{event['what']} is given up ({event['why']})"
    return "yield", f"over: models may use {event['what'] or 'the memory'} again"


def of_pin(event: Event) -> tuple[str, str]:
    who = event["application_id"] or "a program"
    verb = {"pin": "keeps it loaded", "hold": "keeps it from being evicted"}.get(event["kind"], event["kind"])
    return str(event["model"]), f"{who} {verb} ({event['reason']})" if event["pinned"] else f"{who} lets it go"


def of_accelerd(event: Event) -> tuple[str, str]:
    why = "; ".join(event["reasons"])
    return names.PROGRAM, f"{event['state']}{f' ({why})' if why else ''}"


def of_config(event: Event) -> tuple[str, str]:
    return "configuration", f"a new one is in force, the {ordinal(event['generation'])}"


def ordinal(number: int) -> str:
    last = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{last}"


LINES: dict[str, Callable[[Any], tuple[str, str]]] = {
    "model": of_model,
    "device": of_device,
    "job": of_job,
    "yield": of_yield,
    "pin": of_pin,
    "accelerd": of_accelerd,
    "config": of_config,
}
