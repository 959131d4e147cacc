"""accelctl toolbox: list toolboxes, refresh one from a newer image, pin one to its image."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from accelerd.cli.context import Context, print_names, toolbox_names
from accelerd.cli.failure import ExitStatus
from accelerd.cli.output import CliOutput
from accelerd.cli.progress import follow
from accelerd.cli.text import span

HEAD = ("TOOLBOX", "STATE", "LLAMA.CPP", "AGE", "IMAGE", "MODELS")
KNOWN_HEAD = ("IMAGE", "TOOLBOX", "HERE", "NOTE")
LIST_TIMEOUT = 300.0  # s: an image that runs nowhere is asked for its build in a container of its own
SHORT = 12  # digits of an id, as podman shows it
STEPS = {
    "repair": "repairing an interrupted refresh",
    "pull": "pulling the image",
    "try": "testing the new image",
    "swap": "creating the new toolbox",
    "drain": "waiting until {model} has stopped",
    "load": "loading {model}",
    "remove": "removing the old toolbox",
    "undo": "restoring the old toolbox",
}
EPILOG = """\
A refresh pulls the image, tests it beside the toolbox, creates the toolbox again from it and moves its models one by
one. What you installed in the toolbox by hand is not in the new one. If anything fails, the old toolbox is restored.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="list|refresh|pin|unpin", required=True)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=text, description=text)

    listing = action("list", "list all toolboxes: their build of llama.cpp, their image, the models in them")
    listing.add_argument("--known", action="store_true", help="also list the known images, pulled or not")
    listing.add_argument(
        "--names", action="store_true", help="print only the names, one per line; works without accelerd"
    )
    refresh = action("refresh", "create a toolbox again from the newest version of its image and move its models")
    refresh.add_argument("name", metavar="NAME")
    refresh.add_argument(
        "--force",
        action="store_true",
        help="also from the same image, and while somebody is inside: the old toolbox stays until they leave",
    )
    for name, text in (
        ("pin", "refuse to refresh a toolbox until it is unpinned"),
        ("unpin", "allow a toolbox to be refreshed again"),
    ):
        action(name, text).add_argument("name", metavar="NAME")


def run(context: Context, args: argparse.Namespace) -> int:
    return {"list": show, "refresh": refresh, "pin": pin, "unpin": pin}[args.action](context, args)


# --- list -----------------------------------------------------------------------------------------------------


def show(context: Context, args: argparse.Namespace) -> int:
    if args.names:
        return print_names(context, toolbox_names(context))
    found, out = context.client.get("toolboxes", timeout=LIST_TIMEOUT), context.out
    out.result(found)
    toolboxes = found["toolboxes"]
    if toolboxes:
        out.table(HEAD, [row(toolbox) for toolbox in toolboxes], [("bold", "", "", "", "", "")] * len(toolboxes))
    else:
        out.line(
            "No toolboxes. Create one: toolbox create NAME --image IMAGE   (images: accelctl toolbox list --known)"
        )
    said = [*remarks(found)]
    if said:
        out.line()
    for text, fix in said:
        out.wrapped(text, indent="  ", first="! ")
        if fix:
            out.line(f"  {out.style('→', 'cyan')} {fix}")
    if args.known:
        known(out, found["known"])
    return ExitStatus.OK


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
            newer = toolbox["newer"][:SHORT]
            yield f"{name}: a newer image has been pulled ({newer})", f"accelctl toolbox refresh {name}"
        if pinned and pinned != toolbox["image_id"]:
            text = f"{name}: pinned to {pinned[:SHORT]}, but created again by hand from another image"
            yield text, f"accelctl toolbox pin {name}"
    for missing in found["missing"]:
        models = ", ".join(model["name"] for model in missing["models"])
        yield f"{missing['name']}: there is no such toolbox, but {models} should run in it", made_from(missing, found)
    if found["refreshing"]:
        yield f"{found['refreshing']} is being refreshed now", ""
    if found["trouble"]:
        yield found["trouble"], ""


def made_from(missing: dict[str, Any], found: dict[str, Any]) -> str:
    """The command that creates a toolbox that models need; its image is known where the name is that of a known one."""
    image = next((image["name"] for image in found["known"] if image["toolbox"] == missing["name"]), "IMAGE")
    return f"toolbox create --image {image} {missing['name']}"


def known(out: CliOutput, images: Iterable[dict[str, Any]]) -> None:
    rows = []
    for image in images:
        notes = ", ".join(filter(None, ("experimental" if image["experimental"] else "", image["note"])))
        rows.append((image["name"], image["toolbox"], "yes" if image["here"] else "no", notes or "-"))
    out.line()
    out.table(KNOWN_HEAD, rows, [("bold", "", "", "")] * len(rows))
    arguments = sorted({" ".join(image["args"]) for image in images})
    out.line()
    given = f"llama-server with {', '.join(arguments)}"
    out.wrapped(f"With these images accelerd runs {given}, unless a model's settings differ.")


# --- refresh --------------------------------------------------------------------------------------------------


def refresh(context: Context, args: argparse.Namespace) -> int:
    started = context.clock.monotonic()
    events = context.client.events("toolbox/refresh", name=args.name, force=1 if args.force else None)
    last = follow(context.out, args.name, map(as_load, events))
    seconds, out = context.clock.monotonic() - started, context.out
    out.result({"seconds": round(seconds, 3), **last})
    image = f"{last['image']} ({last['image_id'][:SHORT]})"
    if last["event"] == "current":
        out.line(f"{args.name} is {out.style('up to date', 'green')}: {image}")
        return ExitStatus.OK
    before, now = last["old_build"] or "none", last["build"] or "none"
    build = f"llama.cpp {now}" if before == now else f"llama.cpp {before} → {now}"
    out.line(f"{args.name} is {out.style('refreshed', 'green')}: {build}, {image} ({span(seconds)})")
    if last["models"]:
        out.line(f"  moved: {', '.join(last['models'])}")
    for note in last["notes"]:
        out.wrapped(note, indent="  ", first="! ")
    return ExitStatus.OK


def as_load(event: dict[str, Any]) -> dict[str, Any]:
    """A progress event with the keys of a load's, so that bytes of a pull are shown as bytes of memory are."""
    if event.get("event") != "progress":
        return event
    step = str(event.get("step"))
    words = STEPS.get(step, step).format(model=event.get("model"))
    state = "pulling" if step == "pull" else step
    return {
        **event,
        "state": state,
        "words": words,
        "memory": event.get("done"),
        "memory_expected": event.get("total") or None,
    }


# --- pin ------------------------------------------------------------------------------------------------------


def pin(context: Context, args: argparse.Namespace) -> int:
    """Pins or unpins, as the action says."""
    found = context.client.post(f"toolbox/{args.action}", timeout=LIST_TIMEOUT, name=args.name)
    context.out.result(found)
    if args.action == "pin":
        image = f"{found['image']} ({found['pinned'][:SHORT]})"
        text = f"stays at {image}; to change that: accelctl toolbox unpin {args.name}"
    else:
        text = "can be refreshed again" if found["was"] else "was not pinned"
    context.out.line(f"{args.name} {text}")
    return ExitStatus.OK
