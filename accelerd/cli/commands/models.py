"""accelctl models: every configured model, loaded or not, the names it answers to, and the routes over them."""

from __future__ import annotations

import argparse

from accelerd.cli.context import Context
from accelerd.cli.failure import Exit
from accelerd.cli.known_names import model_names, print_names
from accelerd.cli.text import size, span

HEAD = ("MODEL", "STATE", "RESERVES", "KEPT", "ENGINE", "ALIASES")
ROUTES = ("ROUTE", "MODELS, IN ORDER", "DESCRIPTION")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "The same names work as `model` in a request to the daemon."
    parser.add_argument(
        "--names", action="store_true", help="only the names, one a line; those configured where accelerd does not run"
    )


def run(context: Context, args: argparse.Namespace) -> int:
    if args.names:
        return print_names(context, model_names(context))
    status = context.client.get("status")
    models, routes = status.get("models") or [], status.get("routes") or []
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
    if routes:
        out.line()
        lines = [(route["name"], ", ".join(route["models"]), route.get("description") or "-") for route in routes]
        out.table(ROUTES, lines, [("bold", "", "")] * len(lines))
    return Exit.OK
