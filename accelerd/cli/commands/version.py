"""accelctl version: of this tool and of the daemon that answers, which differ after an upgrade without a restart."""

from __future__ import annotations

import argparse

from accelerd import __version__
from accelerd.base import names
from accelerd.cli.context import Context
from accelerd.cli.failure import Exit, Failure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Ends with 0 also when the daemon is not running."


def run(context: Context, args: argparse.Namespace) -> int:
    daemon: str | None = None
    reason = ""
    try:
        daemon = str(context.client.get("status").get("version"))
    except Failure as failure:
        reason = failure.message
    out = context.out
    out.result({"accelctl": __version__, "accelerd": daemon})
    out.line(f"accelctl {__version__}")
    out.line(f"accelerd {daemon}" if daemon else f"accelerd: {reason}")
    if daemon and daemon != __version__ and not out.json_mode:
        out.note(f"the running daemon is another version: systemctl --user restart {names.PROGRAM}")
    return Exit.OK
