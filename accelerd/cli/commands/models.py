"""accelctl models: every configured model, loaded or not, the names it answers to, and the routes over them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from accelerd.base.sizes import human_size
from accelerd.cli.context import Context, model_names, print_names
from accelerd.cli.failure import ExitStatus
from accelerd.cli.text import span

HEAD = ("MODEL", "STATE", "RESERVES", "KEPT", "ENGINE", "ALIASES", "LABELS")
VARIANTS = ("VARIANT", "OF", "DESCRIPTION")
ROUTES = ("ROUTE", "MODELS, IN ORDER", "DESCRIPTION")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "These names are what a request gives as `model`."
    parser.add_argument(
        "--names",
        action="store_true",
        help="print only the names, one per line; without accelerd those of the configuration",
    )


def run(context: Context, args: argparse.Namespace) -> int:
    if args.names:
        return print_names(context, model_names(context))
    status = context.client.get("status")
    models, routes = status.get("models") or [], status.get("routes") or []
    out = context.out
    out.result(models)
    if not models:
        out.line("No models yet. Add one: accelctl add FILE, or accelctl add hf:ORG/REPO")
        return ExitStatus.OK
    rows = []
    for model in models:
        limit = model.get("idle_timeout")
        kept = "always" if model.get("pin") or limit is None else f"{span(limit)} idle"
        kept += ", preloaded" if model.get("preload") else ""
        aliases = ", ".join([*(model.get("aliases") or ()), *hidden(model.get("hidden_aliases"))]) or "-"
        labels = ", ".join(model.get("labels") or ()) or "-"
        memory = human_size(model.get("memory") or None)
        rows.append((model["name"], model["state"], memory, kept, engine(model), aliases, labels))
    shown = len(HEAD) if any(row[-1] != "-" for row in rows) else len(HEAD) - 1
    out.table(HEAD[:shown], [row[:shown] for row in rows], [("bold", *[""] * (shown - 1))] * len(rows))
    if caches := [f"{one['name']} {human_size(one['prompt_cache'])}" for one in models if one.get("prompt_cache")]:
        out.wrapped(f"RESERVES includes prompt caches: {', '.join(caches)}", indent="", style="dim")
    if routes:
        out.line()
        lines = [(route["name"], ", ".join(route["models"]), route.get("description") or "-") for route in routes]
        out.table(ROUTES, lines, [("bold", "", "")] * len(lines))
    variants = [(named(one), owner["name"], one.get("description") or "-")
                for owner in (*models, *routes) for one in owner.get("variants") or ()]  # fmt: skip
    if variants:
        out.line()
        out.table(VARIANTS, variants, [("bold", "", "")] * len(variants))
    return ExitStatus.OK


def hidden(names: Iterable[str] | None) -> list[str]:
    return [f"{name} (hidden)" for name in names or ()]


def named(variant: dict[str, Any]) -> str:
    """All names of a variant."""
    names = [variant["name"], *(variant.get("aliases") or ())]
    return ", ".join(hidden(names) if variant.get("hidden") else names)


def engine(model: dict[str, Any]) -> str:
    """Who runs it, "lemonade: llamacpp" where that has engines of its own."""
    name, recipe = model.get("engine") or "-", model.get("recipe")
    return f"{name}: {recipe}" if recipe and recipe != name else name
