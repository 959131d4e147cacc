"""accelctl devices: every GPU and NPU, its load and the users of its memory; --watch refreshes every second.

Asks the daemon, which knows the models; without one it reads the devices itself, and says so.
"""

from __future__ import annotations

import argparse
from typing import Any

from accelerd.cli.context import Context
from accelerd.cli.device_view import show
from accelerd.cli.live_page import LivePage
from accelerd.cli.local_machine import LocalMachine

EPILOG = "With --json and --watch: one JSON object per line, every second."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="refresh every second until Ctrl-C")


def run(context: Context, args: argparse.Namespace) -> int:
    return asked(context).report(again=args.watch)


def asked(context: Context) -> LivePage:
    def fetch() -> dict[str, Any]:
        return {"source": "daemon", **context.client.get("devices")}

    return LivePage(context, fetch, lambda: LocalMachine(context.roots, context.clock).device_page, show)
