"""accelctl routes: each route with what may answer its requests, as it is now."""

from __future__ import annotations

import argparse
from typing import Any

from accelerd.cli.context import Context
from accelerd.cli.live_page import LivePage
from accelerd.cli.output import CliOutput
from accelerd.cli.text import span

HEAD = ("ORDER", "MODEL", "WEIGHT", "STATE", "RUNS", "WAIT", "HEALTH", "ANSWERED", "LAST FAILURE")
EPILOG = (
    "With --json and --watch: one JSON object per line, every second. The choice in words: accelctl explain ROUTE\n"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("route", nargs="?", metavar="ROUTE", help="only this route")
    parser.add_argument("--watch", action="store_true", help="refresh every second until Ctrl-C")


def run(context: Context, args: argparse.Namespace) -> int:
    def fetch() -> dict[str, Any]:
        return context.client.get("routes", route=args.route)

    return LivePage(context, fetch, None, show).report(again=args.watch)


def show(out: CliOutput, answer: dict[str, Any]) -> None:
    routes = answer.get("routes") or []
    if not routes:
        out.line("No routes. A route gives one name to several models: [routes.NAME] in accelerd.toml")
    for number, route in enumerate(routes):
        if number:
            out.line()
        out.line(f"{out.style(route['route'], 'bold')}: a request now goes to {out.style(route['answers'], 'bold')}")
        rows = [row(one) for one in route.get("deployments") or ()]
        out.table(HEAD, rows, [("", "bold", *[""] * (len(HEAD) - 2))] * len(rows))


def row(one: dict[str, Any]) -> tuple[str, ...]:
    member, model = one["member"], one["model"]
    share = f" ({one['share']:.0%})" if one.get("share") is not None else ""
    return (
        one["stage"].removeprefix("order "),
        model if member == model else f"{model} ({member})",
        str(one["weight"]) if one.get("weight") is not None else "-",
        one.get("state") or "-",
        str(one.get("requests") or 0),
        str(one.get("queue") or 0),
        health(one),
        f"{one.get('answered') or 0}{share}",
        failure(one.get("last_failure")),
    )


def health(one: dict[str, Any]) -> str:
    if one.get("cooling"):
        return f"{one['health']}, {span(one['cooling'])} left"
    return "to be tried" if one["health"] == "trial" else str(one["health"])


def failure(last: dict[str, Any] | None) -> str:
    return f"{span(last['ago'])} ago: {last['message']}" if last else "-"
