"""Output of an engine that prints what people ask it: only the lines that say something of itself get through.

Whole lines only, so nothing is told before its end is seen. Knows no engine: which lines are harmless, the plan says.
"""

from __future__ import annotations

import re
from typing import Final

LONGEST: Final = 64 * 1024  # bytes of a line without an end that are looked at


class OutputRedactor:
    """A filter of one instance's output."""

    def __init__(self, harmless: str) -> None:
        """`harmless`: a regex that the beginning of a line must match."""
        self._harmless = re.compile(harmless.encode())
        self._partial = b""
        self._lost = False  # until the end of a line that is too long

    def __call__(self, chunk: bytes) -> bytes:
        """Of the lines that end in `chunk`, the harmless ones."""
        *ended, partial = (self._partial + chunk).split(b"\n")
        if ended and self._lost:
            del ended[0]
            self._lost = False
        if len(partial) > LONGEST:
            partial, self._lost = b"", True
        self._partial = partial if not self._lost else b""
        return b"".join(line + b"\n" for line in ended if self._harmless.match(line))
