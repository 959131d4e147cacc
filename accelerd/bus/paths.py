"""Names on the bus: object paths with the names in them, and errors.

In a path every byte of a name that is not an ASCII letter or digit is written _xx, as systemd does. The only place that
writes or reads the last part of a path. Pure.
"""

from __future__ import annotations

from accelerd.base.errors import BUS_NAMES, AccelError
from accelerd.base.names import BUS_DEVICES, BUS_ERROR, BUS_JOBS, BUS_MODELS

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


def escape(name: str) -> str:
    """As one part of a path; never empty."""
    return "".join(chr(byte) if byte in _PLAIN else f"_{byte:02x}" for byte in name.encode()) or "_"


def model_path(name: str) -> str:
    return f"{BUS_MODELS}/{escape(name)}"


def device_path(id: str) -> str:
    return f"{BUS_DEVICES}/{escape(id)}"


def job_path(id: int) -> str:
    return f"{BUS_JOBS}/{id}"


def error_name(error: AccelError) -> str:
    """The D-Bus error that it is."""
    return BUS_ERROR + BUS_NAMES[error.code]
