"""A stand-in for the daemon under a real systemd: the system room's own code, wired as the daemon wires it.

    python -m tests.system.standin [--listen ADDRESS]...

Serves one short answer per connection; the request's path makes it hang, crash or tell what it inherited.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import resource
import signal
import sys
import time
from pathlib import Path

from accelerd.base.ports import Roots
from accelerd.system import activation, logs
from accelerd.system.lock import InstanceLock, StartError
from accelerd.system.sd_notify import Notifier, Watchdog

log = logging.getLogger("standin")


def facts(notifier: Notifier) -> dict[str, object]:
    """What this process was given, for the test to look at."""
    status = Path("/proc/self/status").read_text()
    return {
        "pid": os.getpid(),
        "env": sorted(os.environ),
        "umask": f"{os.umask(0o077):03o}",
        "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "no_new_privs": "NoNewPrivs:\t1" in status,
        "watchdog": notifier.watchdog_interval,
    }


class Server:
    """Answers on every socket it is given, until stopped."""

    def __init__(self, notifier: Notifier) -> None:
        self.notifier = notifier
        self.stopped = asyncio.Event()
        self.reloads = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readline()).decode().split(" ")[1]
        if path == "/hang":
            time.sleep(3600)  # noqa: ASYNC251 - the whole event loop hangs: that is the test
        if path == "/crash":
            os._exit(3)
        body = json.dumps(facts(self.notifier)).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    def reload(self) -> None:
        self.notifier.reloading()
        self.reloads += 1
        self.notifier.ready(f"reloaded {self.reloads} times")


async def serve(options: argparse.Namespace, notifier: Notifier) -> None:
    """From the sockets to the last answer."""
    given = activation.sd_listen_fds()
    listen = [address for text in options.listen for address in activation.parse_listen(text)]
    tcp = [sock for _, sock in given.tcp] or activation.bind_tcp(listen)
    sockets = [*tcp, *(sock for _, sock in given.unix)]
    server = Server(notifier)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, server.stopped.set)
    loop.add_signal_handler(signal.SIGHUP, server.reload)
    servers = [await asyncio.start_server(server.answer, sock=sock, backlog=activation.BACKLOG) for sock in sockets]
    watchdog = Watchdog(notifier)
    watchdog.register("servers", lambda: all(one.is_serving() for one in servers))
    watchdog.start()
    where = ", ".join(activation.describe(sock) for sock in sockets)
    log.info("serving on %s", where)
    notifier.ready(f"serving {len(sockets)} sockets")
    await server.stopped.wait()
    notifier.stopping("going")
    watchdog.stop()
    for one in servers:
        one.close()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", action="append", default=[])
    parser.add_argument("--exit", type=int, help="end at once with this status")
    options = parser.parse_args()
    notifier = Notifier.from_env()
    logs.configure()
    if options.exit is not None:
        return int(options.exit)
    try:
        with InstanceLock.acquire(Roots.from_env().runtime / "accelerd.lock"):
            asyncio.run(serve(options, notifier))
    except StartError as error:
        log.error("%s", error)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
