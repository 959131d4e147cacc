"""accelctl devices: every GPU and NPU with what it does now and who uses its memory; --watch keeps it on the screen.

Asks the daemon, which knows the models; without one it looks itself, and says so.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from accelerd.cli.context import Context
from accelerd.cli.device_view import show
from accelerd.cli.failure import Exit, Failure
from accelerd.cli.output import Output

EPILOG = "With --json and --watch: one JSON object a line, every second."
EVERY = 1.0  # s
ITSELF = frozenset({"not_running", "not_reachable", "not_permitted", "no_answer", "not_found"})

Ask = Callable[[], dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="show it anew every second, until Ctrl-C")


def run(context: Context, args: argparse.Namespace) -> int:
    ask = source(context)
    if args.watch:
        return watch(context, ask)
    answer = ask()
    context.out.result(answer)
    show(context.out, answer)
    return Exit.OK


def source(context: Context) -> Ask:
    """The daemon, asked first now; or this process, when there is none."""
    itself: Ask | None = None

    def ask() -> dict[str, Any]:
        nonlocal itself
        if itself is None:
            try:
                return {"source": "daemon", **context.client.get("devices")}
            except Failure as failure:
                if failure.code not in ITSELF:
                    raise
                itself = directly(context)
        return itself()

    return ask


def directly(context: Context) -> Ask:
    """Looks at the machine; the same observer every time, because load and power are known from two looks."""
    from accelerd.devices.inventory import Inventory
    from accelerd.devices.observer import Observer

    inventory, observer = Inventory(context.roots), Observer(context.roots, context.clock)

    def ask() -> dict[str, Any]:
        looks = observer.look(inventory.scan())
        return {"source": "direct", "devices": [look.json({}) for look in looks], "degraded": None}

    return ask


def watch(context: Context, ask: Ask, pause: Callable[[float], None] = time.sleep) -> int:
    """Until Ctrl-C, which is how one leaves it and no failure."""
    out = context.out
    try:
        if out.json_mode:
            while True:
                out.json_line(ask())
                pause(EVERY)
        if not out.tty:
            while True:
                show(out, ask())
                out.line()
                out.stdout.flush()
                pause(EVERY)
        return on_screen(out, context, ask, pause)
    except KeyboardInterrupt:
        return Exit.OK


def on_screen(out: Output, context: Context, ask: Ask, pause: Callable[[float], None]) -> int:
    """The terminal's own page, drawn anew."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=out.stdout, highlight=False)
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            page = out.page(context.env)
            show(page.out, ask())
            live.update(Text.from_ansi(page.text()), refresh=True)
            pause(EVERY)
