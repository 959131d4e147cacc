"""A lock per container: starts share it, and replacing the container takes it exclusively.

It is held shortly: by a start until its process has appeared, by a replacement while containers are renamed and
created. No instance may be stopped under the exclusive lock: one that waits for the shared lock could not react.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class MaintenanceLocks:
    """A lock for each name, shared or exclusive."""

    def __init__(self) -> None:
        self._inside: dict[str, int] = {}
        self._closed: set[str] = set()
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def shared(self, name: str) -> AsyncIterator[None]:
        """Wait until nobody has it exclusively; nobody gets it exclusively before the block ends."""
        await self._until(lambda: name not in self._closed)
        self._inside[name] = self._inside.get(name, 0) + 1
        try:
            yield
        finally:
            self._inside[name] -= 1
            self._tell()

    @asynccontextmanager
    async def exclusive(self, name: str) -> AsyncIterator[None]:
        """Keep others from taking it, wait until those who share it have released it, and hold it for the block."""
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
