"""The native protocol of systemd-journald: one datagram per record, or a sealed memfd if it is too large.

Never blocks and never raises: while journald does not run or its queue is full, records are dropped and counted; the
number is logged before the next record that is accepted.
https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
"""

from __future__ import annotations

import array
import errno
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from accelerd.base import names
from accelerd.system import records

JOURNAL_SOCKET: Final = Path("/run/systemd/journal/socket")
SEND_BUFFER: Final = 8 << 20  # as libsystemd asks for
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_TOO_LARGE: Final = (errno.EMSGSIZE, errno.ENOBUFS)


class JournalClient:
    """Sends entries to journald's socket without blocking."""

    def __init__(self, path: Path = JOURNAL_SOCKET) -> None:
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    def send(self, entry: Mapping[str, str]) -> bool:
        """Was the entry accepted? False: journald does not run or its queue is full, and the entry is lost."""
        data = serialize(entry)
        try:
            # Unconnected on purpose: a restarted journald has a new socket under the same path.
            self._socket.sendto(data, self._path)
        except OSError as error:
            if error.errno not in _TOO_LARGE:
                return False
            return self._send_memfd(data)
        return True

    def _send_memfd(self, data: bytes) -> bool:
        try:
            fd = os.memfd_create("accelerd-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError:
            return False
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(data)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
            self._socket.sendmsg([b""], [rights], 0, self._path)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def close(self) -> None:
        self._socket.close()


class JournalHandler(logging.Handler):
    """Log records as journal entries with priority, place in the code, message id and accelerd's own fields."""

    def __init__(self, client: JournalClient) -> None:
        super().__init__()
        self._client = client
        self.dropped = 0  # since the last entry that was accepted

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sent = self._tell_dropped() and self._client.send(self.entry(record))
        except Exception:  # must not reach the code that logged the record
            sent = False
        if not sent:
            self.dropped += 1

    def entry(self, record: logging.LogRecord) -> dict[str, str]:
        """The journal entry of a record; its own fields cannot replace the standard ones."""
        entry = records.fields(record)
        entry |= self._base(record.levelno)
        entry |= {
            "MESSAGE": "\n".join(records.lines(record)),
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName or "",
        }
        message_id = getattr(record, "message_id", None)
        if message_id:
            entry["MESSAGE_ID"] = str(message_id)
        return entry

    def _tell_dropped(self) -> bool:
        if self.dropped:
            text = f"{self.dropped} log messages were lost: the journal did not accept them"
            if not self._client.send({**self._base(logging.WARNING), "MESSAGE": text}):
                return False
            self.dropped = 0
        return True

    def _base(self, level: int) -> dict[str, str]:
        return {"PRIORITY": str(priority(level)), "SYSLOG_IDENTIFIER": names.PROGRAM}

    def close(self) -> None:
        self._client.close()
        super().close()


def serialize(entry: Mapping[str, str]) -> bytes:
    """The wire form: KEY=value lines. A value with a newline is sent with its length: it cannot start a field."""
    parts: list[bytes] = []
    for name, value in entry.items():
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            parts += (name.encode(), b"\n", struct.pack("<Q", len(data)), data, b"\n")
        else:
            parts += (name.encode(), b"=", data, b"\n")
    return b"".join(parts)


def priority(level: int) -> int:
    if level >= logging.CRITICAL:
        return 2
    if level >= logging.ERROR:
        return 3
    if level >= logging.WARNING:
        return 4
    if level >= records.NOTICE:
        return 5
    return 6 if level >= logging.INFO else 7


def is_journal_stream(value: str, fd: int) -> bool:
    """Is `fd` the stream that $JOURNAL_STREAM ("device:inode") names, so that the journal reads it?"""
    device, colon, inode = value.partition(":")
    if not (colon and device.isdecimal() and inode.isdecimal()):
        return False
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (int(device), int(inode))
