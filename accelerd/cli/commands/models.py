"""accelctl models: every configured model, loaded or not, and the names it answers to."""

from __future__ import annotations

import argparse

from accelerd.cli.context import Context
from accelerd.cli.failure import Exit
from accelerd.cli.known_names import model_names, print_names
from accelerd.cli.text import size, span

HEAD = ("MODEL", "STATE", "RESERVES", "KEPT", "ENGINE", "ALIASES")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "The same names work as `model` in a request to the daemon."
    parser.add_argument(
        "--names", action="store_true", help="only the names, one a line; those configured where accelerd does not run"
    )


def run(context: Context, args: argparse.Namespace) -> int:
    if args.names:
        return print_names(context, model_names(context))
    models = context.client.get("status").get("models") or []
    out = context.out
    out.result(models)
    if not models:
        out.line("No models yet. Add one: accelctl add PATH-OR-NAME")
        return Exit.OK
    rows = []
    for model in models:
        limit = model.get("idle_timeout")
        kept = "always" if model.get("pin") or limit is None else f"{span(limit)} idle"
        kept += ", preloaded" if model.get("preload") else ""
        aliases = ", ".join(model.get("aliases") or ()) or "-"
        rows.append(
            (model["name"], model["state"], size(model.get("memory")), kept, model.get("engine") or "-", aliases)
        )
    out.table(HEAD, rows, [("bold", "", "", "", "", "")] * len(rows))
    return Exit.OK
