"""`python -m accelerd.helper`: the helper's process. Its options are for its unit, which belongs to root, and for
tests; callers on the bus cannot set them.
"""

from __future__ import annotations

import argparse
import configparser
import logging
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from accelerd.base import names

log = logging.getLogger(__name__)

IDLE_TIMEOUT = 60  # s
PRIORITY = {logging.ERROR: "<3>", logging.WARNING: "<4>", logging.INFO: "<6>"}  # sd-daemon(3)


class PriorityFormatter(logging.Formatter):
    """One line per record, with its priority and without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("\n", "\\n")
        return PRIORITY.get(record.levelno, "<6>") + "".join(c if c.isprintable() else "?" for c in text)


def allowed_high(path: Path) -> list[str]:
    """Slots in [helper] allow_high of root's configuration. Empty if the file cannot be read."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with open(path) as file:
            parser.read_file(file)
        return re.split(r"[\s,]+", parser.get("helper", "allow_high", fallback="").strip())
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        log.warning("cannot read %s: %s", path, error)
        return []


def options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="accelerd-helper", description="sets the performance level of AMD GPUs")
    parser.add_argument(
        "--idle", type=int, default=IDLE_TIMEOUT, metavar="SECONDS", help="exit after that time without leases"
    )
    parser.add_argument("--config", type=Path, default=Path(names.HELPER_CONFIG))
    parser.add_argument("--runtime", type=Path, default=Path(names.HELPER_RUNTIME))
    parser.add_argument("--sysfs", type=Path, default=Path("/sys"), help="for tests")
    parser.add_argument("--repair", action="store_true", help="restore what a previous helper has left, and exit")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    chosen = options(sys.argv[1:] if argv is None else argv)
    handler = logging.StreamHandler()
    handler.setFormatter(PriorityFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    from accelerd.helper.leases import LevelLeases

    leases = LevelLeases(chosen.sysfs, chosen.runtime / names.LEVELS_FILE, allowed_high(chosen.config))
    leases.repair()
    if chosen.repair:
        return 0
    try:
        return serve(leases, chosen.idle)
    finally:
        leases.restore_all()


def serve(leases: Any, idle: int) -> int:
    """Serve until idle, stopped or disconnected from the bus. Returned: the exit status."""
    from gi.repository import Gio, GLib

    from accelerd.helper.service import HelperService, RateLimit

    loop = GLib.MainLoop()
    status = 0

    def cut_off(*_: Any) -> None:
        nonlocal status
        status = 1
        loop.quit()

    def lost(*_: Any) -> None:
        if not connection.is_closed():
            log.error("cannot own the name %s: another helper has it, or the bus does not allow it", names.HELPER_NAME)
        cut_off()

    try:
        connection = Gio.bus_get_sync(Gio.BusType.SYSTEM, None)
    except GLib.Error as error:
        log.error("cannot reach the system bus: %s", error.message)
        return 1
    connection.set_exit_on_close(False)
    connection.connect("closed", cut_off)
    for number in (signal.SIGTERM, signal.SIGINT):
        GLib.unix_signal_add(GLib.PRIORITY_HIGH, number, loop.quit)
    HelperService(connection, leases, RateLimit(time.monotonic), idle=idle, end=loop.quit).begin()
    Gio.bus_own_name_on_connection(connection, names.HELPER_NAME, Gio.BusNameOwnerFlags.DO_NOT_QUEUE, None, lost)
    loop.run()
    return status


if __name__ == "__main__":
    sys.exit(main())
