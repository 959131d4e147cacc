"""A place in the scheduler's queue, for a coroutine that waits for its lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from accelerd.base.errors import AccelError
from accelerd.scheduler.record import Lease, Waiter


class Ticket:
    """A place in the queue. `leave` must be called when the wait is over, however it ended."""

    __slots__ = ("_future", "_leave", "_release", "_taken", "waiter")

    def __init__(
        self,
        future: asyncio.Future[Lease | AccelError],
        leave: Callable[[Waiter], None],
        release: Callable[[Lease, bool | None], None],
    ) -> None:
        """`leave` takes the waiter out of the queue, `release` ends a lease that nobody took."""
        self._future = future
        self._leave = leave
        self._release = release
        self._taken = False
        self.waiter: Waiter

    def resolve(self, outcome: Lease | AccelError | None) -> None:
        assert outcome is not None
        if not self._future.done():
            self._future.set_result(outcome)
        elif isinstance(outcome, Lease):  # whoever waited was cancelled in the same turn of the loop
            asyncio.get_running_loop().call_soon(self._release, outcome, None)

    async def ready(self, within: float) -> bool:
        """Wait at most `within` seconds; has the place come up?"""
        await asyncio.wait((self._future,), timeout=within)
        return self._future.done()

    async def lease(self) -> Lease:
        """The lease, when it is its turn. AccelError if it was refused."""
        outcome = await asyncio.shield(self._future) if not self._future.done() else self._future.result()
        self._taken = True
        if isinstance(outcome, AccelError):
            raise outcome.with_traceback(None)
        return outcome

    def leave(self) -> None:
        """Give up the place, or a lease that nobody took."""
        if self._taken:
            return
        if not self._future.done():
            self._leave(self.waiter)
            self._future.cancel()
            return
        outcome = self._future.result()
        if isinstance(outcome, Lease):
            self._release(outcome, None)
