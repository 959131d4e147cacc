"""accelctl toolbox: what toolboxes hold, a newer image for one, and one that shall stay as it is."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from accelerd.cli.client import failure_of
from accelerd.cli.context import Context
from accelerd.cli.failure import Exit
from accelerd.cli.known_names import print_names, toolbox_names
from accelerd.cli.output import Output
from accelerd.cli.progress import PULLING, follow
from accelerd.cli.text import span

HEAD = ("TOOLBOX", "STATE", "LLAMA.CPP", "AGE", "IMAGE", "MODELS")
KNOWN_HEAD = ("IMAGE", "TOOLBOX", "HERE", "NOTE")
PATIENCE = 300.0  # s for builds: each image that runs nowhere is asked in a container of its own
SHORT = 12  # digits of an id, as podman shows it
STEPS = {
    "repair": "repairs an earlier refresh",
    "pull": PULLING,
    "try": "tries the new image",
    "swap": "makes the new toolbox",
    "drain": "waits until {model} has stopped",
    "load": "loads {model}",
    "remove": "removes the old toolbox",
    "undo": "puts the old toolbox back",
}
EPILOG = """\
A refresh pulls the image, tries it beside the toolbox, makes the toolbox anew and moves its models one by one. What was
installed in the toolbox by hand is not in the new one. When anything fails, the old toolbox is put back.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="list|refresh|pin|unpin", required=True)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON for programs")
        return made

    listing = action("list", "every toolbox: its build of llama.cpp, its image, the models in it")
    listing.add_argument("--known", action="store_true", help="the known images too, also those that are not here")
    listing.add_argument("--names", action="store_true", help="only the names, one a line, also without accelerd")
    refresh = action("refresh", "make a toolbox anew from the newest version of its image, and move its models")
    refresh.add_argument("name", metavar="NAME")
    refresh.add_argument(
        "--force",
        action="store_true",
        help="also from the same image; and when somebody is inside: the old one stays until they leave",
    )
    for name, text in (
        ("pin", "refuse to refresh a toolbox, until it is unpinned"),
        ("unpin", "let a toolbox be refreshed again"),
    ):
        action(name, text).add_argument("name", metavar="NAME")


def run(context: Context, args: argparse.Namespace) -> int:
    return {"list": show, "refresh": refresh, "pin": pin, "unpin": unpin}[args.action](context, args)


# --- list -----------------------------------------------------------------------------------------------------


def show(context: Context, args: argparse.Namespace) -> int:
    if args.names:
        return print_names(context, toolbox_names(context))
    found, out = context.client.get("toolboxes", patience=PATIENCE), context.out
    out.result(found)
    toolboxes = found["toolboxes"]
    if toolboxes:
        out.table(HEAD, [row(toolbox) for toolbox in toolboxes], [("bold", "", "", "", "", "")] * len(toolboxes))
    else:
        out.line("No toolboxes. Make one: toolbox create NAME --image IMAGE   (accelctl toolbox list --known)")
    said = [*remarks(found)]
    if said:
        out.line()
    for text, fix in said:
        out.wrapped(text, indent="  ", first="! ")
        if fix:
            out.line(f"  {out.style('→', 'cyan')} {fix}")
    if args.known:
        known(out, found["known"])
    return Exit.OK


def row(toolbox: dict[str, Any]) -> tuple[str, ...]:
    models = ", ".join(f"{m['name']}{' (loaded)' if m['loaded'] else ''}" for m in toolbox["models"])
    build = toolbox["build"] or ("?" if toolbox["build_trouble"] else "none")
    state = ("running" if toolbox["running"] else "stopped") + (", pinned" if toolbox["pinned"] else "")
    image = f"{toolbox['image']} ({toolbox['image_id'][:SHORT]})"
    return toolbox["name"], state, build, age(toolbox["created"]), image, models or "-"


def age(created: str) -> str:
    """How long ago that was; "-" where it cannot be read."""
    try:
        began = datetime.fromisoformat(created)
    except ValueError:
        return "-"
    return span(max((datetime.now(UTC) - began).total_seconds(), 0.0)) if began.tzinfo else "-"


def remarks(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a person should know beside the table, each with a command where one helps."""
    for toolbox in found["toolboxes"]:
        name, pinned = toolbox["name"], toolbox["pinned"]
        image = toolbox["known"] or {}
        if image.get("experimental"):
            yield f"{name}: {image['tag']} is experimental", ""
        if image.get("note"):
            yield f"{name}: {image['tag']}: {image['note']}", ""
        if toolbox["build_trouble"]:
            yield f"{name}: {toolbox['build_trouble']}", ""
        if toolbox["newer"] and not pinned:
            yield f"{name}: a newer image is here ({toolbox['newer'][:SHORT]})", f"accelctl toolbox refresh {name}"
        if pinned and pinned != toolbox["image_id"]:
            yield f"{name}: pinned to {pinned[:SHORT]}, but it was made anew by hand", f"accelctl toolbox pin {name}"
    for missing in found["missing"]:
        models = ", ".join(model["name"] for model in missing["models"])
        yield f"{missing['name']}: there is no such toolbox, and {models} would run in it", made_from(missing, found)
    if found["refreshing"]:
        yield f"{found['refreshing']} is being refreshed just now", ""
    if found["trouble"]:
        yield found["trouble"], ""


def made_from(missing: dict[str, Any], found: dict[str, Any]) -> str:
    """The command that makes a toolbox which models want: where its name is that of a known image."""
    image = next((image["name"] for image in found["known"] if image["toolbox"] == missing["name"]), "IMAGE")
    return f"toolbox create --image {image} {missing['name']}"


def known(out: Output, images: Iterable[dict[str, Any]]) -> None:
    """The table of known images."""
    rows = []
    for image in images:
        notes = ", ".join(filter(None, ("experimental" if image["experimental"] else "", image["note"])))
        rows.append((image["name"], image["toolbox"], "yes" if image["here"] else "no", notes or "-"))
    out.line()
    out.table(KNOWN_HEAD, rows, [("bold", "", "", "")] * len(rows))
    arguments = sorted({" ".join(image["args"]) for image in images})
    out.line()
    text = f"With these images accelerd runs llama-server with {', '.join(arguments)}, unless a model says otherwise."
    out.wrapped(text)


# --- refresh --------------------------------------------------------------------------------------------------


def refresh(context: Context, args: argparse.Namespace) -> int:
    started = context.clock.monotonic()
    events = context.client.events("toolbox/refresh", name=args.name, force=1 if args.force else None)
    last = follow(context.out, args.name, map(as_load, events))
    if last.get("event") == "error":
        raise failure_of(last.get("error") or {})
    seconds, out = context.clock.monotonic() - started, context.out
    out.result({"seconds": round(seconds, 3), **last})
    image = f"{last['image']} ({last['image_id'][:SHORT]})"
    if last["event"] == "current":
        out.line(f"{args.name} is {out.style('up to date', 'green')}: {image}")
        return Exit.OK
    before, now = last["old_build"] or "none", last["build"] or "none"
    build = f"llama.cpp {now}" if before == now else f"llama.cpp {before} → {now}"
    out.line(f"{args.name} is {out.style('refreshed', 'green')}: {build}, {image} ({span(seconds)})")
    if last["models"]:
        out.line(f"  in it again: {', '.join(last['models'])}")
    for note in last["notes"]:
        out.wrapped(note, indent="  ", first="! ")
    return Exit.OK


def as_load(event: dict[str, Any]) -> dict[str, Any]:
    """A progress event in the words of a load's: bytes of a pull are shown as bytes of memory are."""
    if event.get("event") != "progress":
        return event
    step = str(event.get("step"))
    state = STEPS.get(step, step).format(model=event.get("model"))
    return {**event, "state": state, "memory": event.get("done"), "memory_expected": event.get("total") or None}


# --- pin ------------------------------------------------------------------------------------------------------


def pin(context: Context, args: argparse.Namespace) -> int:
    found = context.client.post("toolbox/pin", patience=PATIENCE, name=args.name)
    context.out.result(found)
    image = f"{found['image']} ({found['pinned'][:SHORT]})"
    context.out.line(f"{args.name} stays at {image} until: accelctl toolbox unpin {args.name}")
    return Exit.OK


def unpin(context: Context, args: argparse.Namespace) -> int:
    found = context.client.post("toolbox/unpin", patience=PATIENCE, name=args.name)
    context.out.result(found)
    text = "may be refreshed again" if found["was"] else "was not pinned"
    context.out.line(f"{args.name} {text}")
    return Exit.OK
