"""Configures logging for the process: to the journal if standard error is connected to it, else as text.

The only place that touches the root logger. Also limits the records of aiohttp's server, which logs a traceback for
every malformed request, so that a client cannot fill the disk.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from accelerd.base import names
from accelerd.base.ports import Clock, SystemClock
from accelerd.system.journal import JOURNAL_SOCKET, JournalClient, JournalHandler, is_journal_stream
from accelerd.system.records import NOTICE, escape, event
from accelerd.system.terminal import TerminalHandler, wants_colour

__all__ = ["LEVELS", "NOTICE", "PeerLimit", "configure", "escape", "event"]

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "notice": NOTICE,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
PEER_PERIOD: Final = 10.0  # s between two lines about one peer
PEERS_KEPT: Final = 256


def configure(
    level: str | None = None,
    *,
    env: Mapping[str, str] | None = None,
    fd: int | None = None,
    journal: Path = JOURNAL_SOCKET,
) -> logging.Handler:
    """Set the root logger's one handler and return it; the level is `level`, $ACCELERD_LOG_LEVEL or info.

    ValueError for a level that is not in LEVELS. May be called again; the previous handler is closed.
    """
    env = os.environ if env is None else env
    fd = sys.stderr.fileno() if fd is None else fd
    wanted = (level or env.get(names.ENV_LOG_LEVEL) or "info").lower()
    if wanted not in LEVELS:
        raise ValueError(f"cannot use log level {wanted!r}: choose one of {', '.join(LEVELS)}")
    handler: logging.Handler
    if is_journal_stream(env.get("JOURNAL_STREAM", ""), fd):
        handler = JournalHandler(JournalClient(journal))
    else:
        handler = TerminalHandler(fd, colour=wants_colour(fd, env))
    logging.addLevelName(NOTICE, "NOTICE")
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, JournalHandler | TerminalHandler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(LEVELS[wanted])
    logging.getLogger("aiohttp.access").disabled = True
    server = logging.getLogger("aiohttp.server")
    for limit in [limit for limit in server.filters if isinstance(limit, PeerLimit)]:
        server.removeFilter(limit)
    server.addFilter(PeerLimit())
    return handler


class PeerLimit(logging.Filter):
    """For the logger aiohttp.server: one line for a malformed request, at most one per peer in ten seconds.

    Other exceptions are bugs: they keep their traceback, at most once in ten seconds for each place in the code.
    """

    def __init__(self, *, period: float = PEER_PERIOD, clock: Clock | None = None) -> None:
        super().__init__()
        self._period = period
        self._clock = clock or SystemClock()
        self._seen: OrderedDict[object, tuple[float, int]] = OrderedDict()  # key → (last logged, suppressed since)

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return True
        from aiohttp.http_exceptions import HttpProcessingError  # this record comes from aiohttp: it is loaded

        malformed = isinstance(error, HttpProcessingError)
        peer = (
            str(record.args[0]) if isinstance(record.args, tuple) and record.args and record.args[0] else "local client"
        )
        held = self._admit(peer if malformed else _place(error))
        if held is None:
            return False
        more = f" ({held} more were not logged)" if held else ""
        if malformed:
            # Not the error's text, which quotes the request.
            record.msg, record.args = "malformed request from %s: %s%s", (peer, type(error).__name__, more)
            record.levelno, record.levelname = logging.WARNING, "WARNING"
            record.exc_info = record.exc_text = None
        elif more:
            record.msg, record.args = "%s%s", (record.getMessage(), more)
        return True

    def _admit(self, key: object) -> int | None:
        """How many records of `key` were suppressed before this one; None: suppress this one as well."""
        now = self._clock.monotonic()
        last, held = self._seen.pop(key, (None, 0))
        if last is not None and now - last < self._period:
            self._seen[key] = (last, held + 1)
            return None
        self._seen[key] = (now, 0)
        while len(self._seen) > PEERS_KEPT:
            self._seen.popitem(last=False)
        return held


def _place(error: BaseException) -> object:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return (type(error), trace.tb_frame.f_code.co_filename, trace.tb_lineno) if trace else type(error)
