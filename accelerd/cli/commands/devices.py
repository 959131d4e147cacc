"""accelctl devices: every GPU and NPU, its load and the users of its memory; --watch refreshes every second.

Asks the daemon, which knows the models; without one it reads the devices itself, and says so.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from accelerd.cli import local_machine, watching
from accelerd.cli.context import Context
from accelerd.cli.device_view import show
from accelerd.cli.failure import ExitStatus
from accelerd.cli.watching import Fetch

EPILOG = "With --json and --watch: one JSON object per line, every second."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="refresh every second until Ctrl-C")


def run(context: Context, args: argparse.Namespace) -> int:
    ask = source(context)
    if args.watch:
        return watch(context, ask)
    answer = ask()
    context.out.result(answer)
    show(context.out, answer)
    return ExitStatus.OK


def source(context: Context) -> Fetch:
    """The daemon, asked first now; or this process, when there is none."""
    itself: Fetch | None = None

    def look() -> dict[str, Any]:
        nonlocal itself
        itself = itself or directly(context)
        return itself()

    return local_machine.source(context, "devices", look)


def directly(context: Context) -> Fetch:
    """Looks at the machine; the same observer every time, because load and power are known from two looks."""
    import msgspec

    from accelerd.control.devices import device_report
    from accelerd.devices.inventory import Inventory
    from accelerd.devices.observer import DeviceObserver

    inventory, observer = Inventory(context.roots), DeviceObserver(context.roots, context.clock)

    def ask() -> dict[str, Any]:
        looks = observer.look(inventory.scan())
        found = [msgspec.to_builtins(device_report(look, {})) for look in looks]
        return {"source": "direct", "devices": found, "degraded": None}

    return ask


def watch(context: Context, ask: Fetch, pause: Callable[[float], None] = time.sleep) -> int:
    """Until Ctrl-C."""
    return watching.watch(context, ask, show, pause)
