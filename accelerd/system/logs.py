"""Configures logging for the process: to the journal if standard error is connected to it, else as text.

The only place that touches the root logger.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from accelerd.base import names
from accelerd.system import records
from accelerd.system.journal import JOURNAL_SOCKET, JournalClient, JournalHandler, is_journal_stream
from accelerd.system.records import NOTICE

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "notice": NOTICE,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
PIECE: Final = 4096  # PIPE_BUF: a pipe or terminal that polls writable takes this much without blocking
_COLOURS: Final = ((logging.CRITICAL, "1;31"), (logging.ERROR, "31"), (logging.WARNING, "33"), (NOTICE, "36"))
_LEVELS: Final = {
    logging.CRITICAL: "critical", logging.ERROR: "error", logging.WARNING: "warning",
    NOTICE: "notice", logging.INFO: "info", logging.DEBUG: "debug",
}  # fmt: skip


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
    return handler


class TerminalHandler(logging.Handler):
    """Log records as text: time, level, model and message on one line, coloured on a terminal.

    Writes to a descriptor that it does not own and never blocks: while it does not accept output (Ctrl-S on a terminal,
    a full pipe), messages are dropped and counted.
    """

    def __init__(self, fd: int, *, colour: bool) -> None:
        super().__init__()
        self._fd = fd
        self._colour = colour
        self.dropped = 0  # since the last line that was written

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.line(record)
            if self.dropped:
                text = f"         ({self.dropped} log messages were lost: the output was blocked)\n" + text
            written = self._write(text.encode("utf-8", "backslashreplace"))
        except Exception:  # must not reach the code that logged the record
            written = False
        self.dropped = 0 if written else self.dropped + 1

    def line(self, record: logging.LogRecord) -> str:
        """What is shown for a record, with the final newline."""
        first, *rest = records.lines(record)
        model = records.fields(record).get(names.FIELD_MODEL, "")
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = _LEVELS.get(record.levelno, record.levelname.lower())
        shown = f"{self._paint('2', clock)} {self._paint(_colour(record.levelno), f'{level:8}')} "
        if model and not first.startswith(f"{model}:"):  # do not repeat the name
            shown += self._paint("1;34", model) + ": "
        return "".join(f"{part}\n" for part in (shown + first, *(f"         {line}" for line in rest)))

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and code else text

    def _write(self, data: bytes) -> bool:
        poll = select.poll()
        try:
            poll.register(self._fd, select.POLLOUT)
            for start in range(0, len(data), PIECE):
                ready = poll.poll(0)
                if not ready or not ready[0][1] & select.POLLOUT:
                    return False
                os.write(self._fd, data[start : start + PIECE])
        except OSError:  # closed
            return False
        return True


def wants_colour(fd: int, env: Mapping[str, str]) -> bool:
    """A terminal, and neither NO_COLOR (https://no-color.org) nor TERM=dumb."""
    return os.isatty(fd) and not env.get("NO_COLOR") and env.get("TERM") != "dumb"


def _colour(level: int) -> str:
    return next((code for least, code in _COLOURS if level >= least), "2" if level < logging.INFO else "")
