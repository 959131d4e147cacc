"""Amounts of memory as people read them, in the same words wherever a decision about memory is explained. Pure."""

from __future__ import annotations


def gib(size: int) -> str:
    """Bytes as "12.3 GiB", below half of one as "300.0 MiB"."""
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 29 else f"{size / (1 << 20):.1f} MiB"
