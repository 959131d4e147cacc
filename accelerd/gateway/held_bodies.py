"""How much the bodies of all requests take together, from their first byte to the end of the answer."""

from __future__ import annotations

import asyncio
from typing import Final

from accelerd.base.errors import AccelError
from accelerd.system.allocator import FreedMemory

SMALL: Final = 256 << 10  # bytes that are not counted: server.max_connections bounds them


class HeldBodies:
    """Of all connections. `limit`: server.max_bodies."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.limit = 0
        self.size = 0  # bytes
        self._freed = FreedMemory(loop)

    def hold(self, more: int) -> AccelError | None:
        """So many bytes more are there, or are let go. The refusal of the request that they are of, if it is one."""
        self.size += more
        if more <= 0:
            self._freed.add(-more)
        if more <= 0 or self.size <= self.limit:
            return None
        text = f"the bodies of all requests together are larger than {self.limit} bytes (server.max_bodies)"
        return AccelError("too_many_bodies", text, hint="try again when other requests are answered", retry_after=5)

    def close(self) -> None:
        self._freed.close()
