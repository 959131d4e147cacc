"""accelctl devices: every GPU and NPU, its load and the users of its memory; --watch refreshes every second.

Asks the daemon, which knows the models; without one it reads the devices itself, and says so.
"""

from __future__ import annotations

import argparse
from typing import Any

from accelerd.cli.context import Context
from accelerd.cli.device_view import show
from accelerd.cli.live_page import Fetch, LivePage

EPILOG = "With --json and --watch: one JSON object per line, every second."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="refresh every second until Ctrl-C")


def run(context: Context, args: argparse.Namespace) -> int:
    return asked(context).report(again=args.watch)


def asked(context: Context) -> LivePage:
    return LivePage(context, "devices", lambda: directly(context), show)


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
