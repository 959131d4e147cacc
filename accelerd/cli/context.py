"""What every command is given (files, connection, output, input), and how a mistyped model name is explained."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from accelerd.base.ports import Clock, Roots, SystemClock
from accelerd.cli.connect import DaemonClient
from accelerd.cli.failure import Failure, no_model
from accelerd.cli.output import CliOutput


@dataclass(frozen=True)
class Context:
    """One run of accelctl."""

    roots: Roots
    client: DaemonClient
    out: CliOutput
    stdin: TextIO
    env: Mapping[str, str]
    clock: Clock = field(default_factory=SystemClock)


@dataclass(frozen=True)
class Command:
    """One command. A module with several has them in `COMMANDS`; one with a single command has these as its names."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Context, argparse.Namespace], int]  # the exit status; raises Failure
    epilog: str = ""


def no_arguments(parser: argparse.ArgumentParser) -> None:
    """Of a command that takes none of its own."""


def reload(context: Context) -> bool:
    """Have the daemon read the configuration again; False when none runs."""
    try:
        context.client.post("reload")
    except Failure as failure:
        if failure.code != "not_running":
            raise
        return False
    return True


def explain_name(context: Context, name: str, failure: Failure) -> Failure:
    """A model_not_found failure with the name that was probably meant, or the names that there are."""
    if failure.code != "model_not_found" or failure.hint:
        return failure
    return unknown_name(context, name)


def unknown_name(context: Context, name: str) -> Failure:
    known = model_names(context.client.get("status"))
    some = ", ".join(known[:6]) + (" …" if len(known) > 6 else "")
    return no_model(name, known, f"known models: {some}" if some else "add one: accelctl add")


def model_names(status: dict[str, Any]) -> list[str]:
    """Every name that a request may use: models, routes, aliases, then those with a generated prefix."""
    models = status.get("models") or []
    return [
        *(m["name"] for m in models),
        *(route["name"] for route in status.get("routes") or ()),
        *(alias for m in models for alias in m.get("aliases") or ()),
        *(m["prefixed"] for m in models if m.get("prefixed")),
    ]
