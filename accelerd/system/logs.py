"""Configures logging for the process: to the journal if standard error is connected to it, else as text.

The only place that touches the root logger.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from accelerd.base import names
from accelerd.system.journal import JOURNAL_SOCKET, JournalClient, JournalHandler, is_journal_stream
from accelerd.system.records import NOTICE, escape, event
from accelerd.system.terminal import TerminalHandler, wants_colour

__all__ = ["LEVELS", "NOTICE", "configure", "escape", "event"]

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "notice": NOTICE,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


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
