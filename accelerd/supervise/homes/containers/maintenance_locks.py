"""The door of each container: starts go through it, and whoever changes what a name stands for closes it meanwhile.

Nobody waits long here: a start is inside only until its process has appeared, a change only renames and makes. Nothing
may be stopped while a door is closed: what waits before it could not be told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class MaintenanceLocks:
    """One door per name; open unless somebody holds it closed."""

    def __init__(self) -> None:
        self._inside: dict[str, int] = {}
        self._closed: set[str] = set()
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def shared(self, name: str) -> AsyncIterator[None]:
        """Wait until it is open; it cannot be closed before the block ends."""
        await self._until(lambda: name not in self._closed)
        self._inside[name] = self._inside.get(name, 0) + 1
        try:
            yield
        finally:
            self._inside[name] -= 1
            self._tell()

    @asynccontextmanager
    async def exclusive(self, name: str) -> AsyncIterator[None]:
        """Let nobody in any more, wait until those inside are through, and hold it closed for the block."""
        await self._until(lambda: name not in self._closed)
        self._closed.add(name)
        try:
            await self._until(lambda: not self._inside.get(name))
            yield
        finally:
            self._closed.discard(name)
            self._tell()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
