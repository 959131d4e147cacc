"""accelctl remotes: the servers elsewhere that models use, whether they answer, and what they have."""

from __future__ import annotations

import argparse
from typing import Any

from accelerd.base.sizes import human_size
from accelerd.cli.context import Context
from accelerd.cli.failure import ExitStatus
from accelerd.cli.text import printable

HEAD = ("REMOTE", "STATE", "API", "MODELS HERE", "URL")
MODELS_HEAD = ("REMOTE", "MODEL THERE", "HERE", "LOADED", "SIZE", "CONTEXT", "CAN")
LOADED = {True: "yes", False: "no", None: "-"}
MOST = 100  # models of one remote that are shown
TIMEOUT = 30.0  # s: each has a few seconds to answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Each is asked now. That loads nothing there."


def run(context: Context, args: argparse.Namespace) -> int:
    found: list[dict[str, Any]] = context.client.get("remotes", timeout=TIMEOUT)["remotes"]
    out = context.out
    out.result(found)
    if not found:
        out.line("No remotes. docs/remotes.md says how to name one in accelerd.toml.")
        return ExitStatus.OK
    rows = [
        (
            one["name"],
            "reachable" if one["reachable"] else "unreachable",
            one["api"],
            ", ".join(one["used"]) or "-",
            one["url"],
        )
        for one in found
    ]
    out.table(HEAD, rows, [("bold", "" if one["reachable"] else "red", "", "", "") for one in found])
    for one in found:
        if one["trouble"]:
            known = "; its models are those that it had when it answered last" if one["models"] else ""
            out.wrapped(printable(f"{one['name']}: {one['trouble']}{known}"), indent="  ", first="! ", style="yellow")
        for name in one["missing"]:
            text = f"{one['name']} has no model of the name that {name} gives it"
            out.wrapped(printable(text), indent="  ", first="! ", style="yellow")
    models = [
        (
            one["name"],
            printable(model["name"]),
            printable(", ".join(model["names"])) or "-",
            LOADED[model["loaded"]],
            human_size(model["size"]) if model["size"] else "-",
            str(model["context"] or "-"),
            ", ".join(model["capabilities"]) or "-",
        )
        for one in found
        for model in one["models"][:MOST]
    ]
    if models:
        out.line()
        out.table(MODELS_HEAD, models, [("", "bold", *[""] * 5)] * len(models))
    for one in found:
        if (more := len(one["models"]) - MOST) > 0:
            out.line(f"{one['name']} has {more} more; accelctl --json remotes shows all.")
    return ExitStatus.OK
