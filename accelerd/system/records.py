"""Log records with journal fields, and their escaping: the part that all handlers share.

`event()` attaches fields and a message id to an ordinary `logging` record. All text is escaped before it is written.
Prompts and secrets must never be logged.
"""

from __future__ import annotations

import logging
import re
import traceback
from typing import Any, Final

NOTICE: Final = 25  # between INFO and WARNING: normal but significant, as in syslog
FIELD_PREFIX: Final = "ACCELERD_"
VALUE_LIMIT: Final = 64 << 10  # characters of one message or field
TRACEBACK_LINES: Final = 60

# C0, DEL and C1 controls, line and paragraph separators, direction overrides, lone surrogates.
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\x1b": "\\e"}
_FIELD_NAME: Final = re.compile("[A-Z][A-Z0-9_]{0,63}")  # what journald accepts from outside


def event(
    logger: logging.Logger,
    level: int,
    text: str,
    *,
    message_id: str | None = None,
    exc_info: Any = None,
    stacklevel: int = 1,
    **fields: object,
) -> None:
    """Log `text` as it is, with journal fields: model= becomes ACCELERD_MODEL=, None is left out."""
    if logger.isEnabledFor(level):
        extra = {"fields": {_field_name(name): value for name, value in fields.items()}, "message_id": message_id}
        logger.log(level, text, extra=extra, exc_info=exc_info, stacklevel=stacklevel + 1)


def escape(text: str) -> str:
    """`text` on one line, safe for a terminal: control characters become \\n, \\e, \\x9b, \\u2028."""
    return _UNPRINTABLE.sub(_escape_one, text)


def lines(record: logging.LogRecord) -> list[str]:
    """The message on one escaped line, then the traceback's escaped lines, if there is an exception."""
    try:
        message = record.getMessage()
    except Exception as error:  # wrong arguments at the call site
        message = f"{record.msg!r} (cannot format: {error!r})"
    found = [escape(_cut(message))]
    if record.exc_info and record.exc_info[0] is not None:
        text = "".join(traceback.format_exception(*record.exc_info))
        found += [escape(_cut(line)) for line in text.splitlines()][-TRACEBACK_LINES:]
    if record.stack_info:
        found += [escape(_cut(line)) for line in record.stack_info.splitlines()][-TRACEBACK_LINES:]
    return found


def fields(record: logging.LogRecord) -> dict[str, str]:
    """The escaped journal fields of a record; names that journald would refuse are left out."""
    given = getattr(record, "fields", None)
    if not isinstance(given, dict):
        return {}
    return {
        name: escape(_cut(str(value)))
        for name, value in given.items()
        if value is not None and isinstance(name, str) and _FIELD_NAME.fullmatch(name)
    }


def _field_name(name: str) -> str:
    return name if name.isupper() else FIELD_PREFIX + name.upper()


def _cut(text: str) -> str:
    return text if len(text) <= VALUE_LIMIT else text[:VALUE_LIMIT] + "…"


def _escape_one(match: re.Match[str]) -> str:
    character = match.group()
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
