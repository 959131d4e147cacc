"""`accelerd`: the daemon's command line. Everything else is in the configuration."""

from __future__ import annotations

import argparse
import asyncio
import errno
import faulthandler
import gc
import os
import subprocess
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

from accelerd import __version__
from accelerd.base import names
from accelerd.base.ports import Roots
from accelerd.system import logs
from accelerd.system.lock import EXIT_CONFIG, StartError
from accelerd.system.sd_notify import STATUS_LIMIT, SdTransport

SYSTEMCTL_TIMEOUT: Final = 5.0  # s


def main(argv: list[str] | None = None) -> int:
    """Run the daemon in the foreground; the exit status for the shell."""
    parser = command_line()
    arguments = parser.parse_args(argv)
    faulthandler.enable()  # the watchdog ends a hang with SIGABRT: this prints where it hung
    try:
        logs.configure(arguments.log_level)
    except ValueError as error:
        parser.error(str(error))
    gc.disable()  # until the daemon serves: what is loaded until then stays
    if arguments.write_socket_unit:
        return write_socket_unit(Roots.from_env())
    from accelerd.app import reap  # after the command line is known to be right: --help need not load the daemon
    from accelerd.daemon import serve
    from accelerd.system.allocator import share_heaps

    manager = os.environ.get("NOTIFY_SOCKET")
    try:
        if arguments.reap:
            asyncio.run(reap(Roots.from_env()))
        else:
            refuse_if_masked()
            share_heaps()
            _run(serve(Roots.from_env()))
    except StartError as error:
        print(f"accelerd: {error.message}", file=sys.stderr)
        if manager:
            tell_failure(manager, error.message)
        return error.status
    return 0


def command_line() -> argparse.ArgumentParser:
    """What accelerd understands."""
    parser = argparse.ArgumentParser(
        prog="accelerd",
        description="Supervise local AI models and serve them on one OpenAI-compatible endpoint.",
        epilog="Configuration: $XDG_CONFIG_HOME/accelerd/accelerd.toml (accelctl config). Control: accelctl.",
    )
    parser.add_argument("--version", action="version", version=f"accelerd {__version__}")
    parser.add_argument("--log-level", choices=sorted(logs.LEVELS), help="default: $ACCELERD_LOG_LEVEL or info")
    parser.add_argument(
        "--reap", action="store_true", help="end what an accelerd that is no more has left behind, and exit"
    )
    parser.add_argument(
        "--write-socket-unit",
        action="store_true",
        help="have accelerd-http.socket listen where the configuration says, from the next daemon-reload on, and exit",
    )
    return parser


def refuse_if_masked() -> None:
    """StartError when a bus that does not know systemd starts what is masked there."""
    if "DBUS_STARTER_ADDRESS" not in os.environ:
        return
    command = ["systemctl", "--user", "show", "--property=LoadState", "--value", names.SERVICE_UNIT]
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SYSTEMCTL_TIMEOUT)
        if done.stdout.strip() == "masked":
            raise StartError(f"{names.SERVICE_UNIT} is masked in systemd: a D-Bus call does not start it either")


def tell_failure(manager: str, message: str) -> None:
    """Leave the reason with the service manager: `systemctl status` and accelctl show it."""
    with suppress(OSError):
        transport = SdTransport(manager)
        transport.notify(f"STATUS={' '.join(message.split())[:STATUS_LIMIT]}\nERRNO={errno.ECANCELED}")
        transport.close()


def write_socket_unit(roots: Roots) -> int:
    """For an installer: before systemd listens anywhere. The daemon does the same when it reads the configuration."""
    from accelerd.config import check
    from accelerd.policy.socket_unit import dropin_path, write_dropin

    config, problems = check(roots.config_file, roots.home)
    if config is None:
        print("accelerd: the configuration is not valid:", *problems, sep="\n  ", file=sys.stderr)
        return EXIT_CONFIG
    write_dropin(dropin_path(), config.server.listen)
    return 0


def _run(work: Coroutine[Any, Any, None]) -> None:
    """On uvloop where there is one, else on asyncio's own loop: slower, not different."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


if __name__ == "__main__":
    sys.exit(main())
