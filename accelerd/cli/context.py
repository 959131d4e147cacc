"""What every command is given: where the files are, the daemon's client, the output, the input. Holds no behaviour."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

from accelerd.base.ports import Clock, Roots, SystemClock
from accelerd.cli.client import Reach
from accelerd.cli.failure import Failure
from accelerd.cli.output import Output
from accelerd.cli.text import nearest


@dataclass(frozen=True)
class Context:
    """One run of accelctl."""

    roots: Roots
    client: Reach
    out: Output
    stdin: TextIO
    env: Mapping[str, str]
    clock: Clock = field(default_factory=SystemClock)


class Command(Protocol):
    """The shape of a module that is one command."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, context: Context, args: argparse.Namespace) -> int:
        """The exit status; raises Failure."""
        ...


def explain_name(context: Context, name: str, failure: Failure) -> Failure:
    """A model_not_found failure with the name that was probably meant, or the names that there are."""
    if failure.code != "model_not_found" or "did you mean" in failure.message:
        return failure
    known = model_names(context.client.get("status"))
    guess = nearest(name, known)
    some = ", ".join(known[:6]) + (" …" if len(known) > 6 else "")
    failure.hint = (
        f"did you mean {guess}?" if guess else f"there is: {some}" if some else "there is none yet: accelctl add"
    )
    failure.message = f"no model is called {name}"
    return failure


def model_names(status: dict[str, Any]) -> list[str]:
    """Every name that a request may use: models, routes, aliases, then those with a generated prefix."""
    models = status.get("models") or []
    return [
        *(m["name"] for m in models),
        *(route["name"] for route in status.get("routes") or ()),
        *(alias for m in models for alias in m.get("aliases") or ()),
        *(m["prefixed"] for m in models if m.get("prefixed")),
    ]
