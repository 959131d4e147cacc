"""One stream of typed events: who knows a fact publishes it once; whoever needs it subscribes.

An event is an immutable object whose class is defined in the room that owns the fact. Everything happens on the event
loop's thread. Events reach every subscriber in the order in which they were published, also when a subscriber publishes
further ones; subscribers of one class are called in the order in which they subscribed. Imports no other room.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, Final, TypeVar

from msgspec import Struct

log = logging.getLogger(__name__)

E = TypeVar("E")
Subscriber = Callable[[Any], None]
Unsubscribe = Callable[[], None]

READER_LIMIT: Final = 256  # events that a reader may be behind


class EventStream:
    """Delivers events to the subscribers of their exact class."""

    def __init__(self) -> None:
        self._subscribers: dict[type, tuple[Subscriber, ...]] = {}
        self._pending: deque[object] = deque()  # published while another event is being delivered
        self._delivering = False

    def subscribe(self, kind: type[E], callback: Callable[[E], None]) -> Unsubscribe:
        """Call `callback` with every event of this class from now on. It must return at once; what it raises is logged.

        Returns the function that ends the subscription; calling it again does nothing.
        """

        def unsubscribe() -> None:
            self._subscribers[kind] = tuple(one for one in self._subscribers[kind] if one != callback)

        self._subscribers[kind] = (*self._subscribers.get(kind, ()), callback)
        return unsubscribe

    @contextmanager
    def reader(self, *kinds: type, limit: int = READER_LIMIT) -> Iterator[EventReader]:
        """The events of these classes, for a task that may be slower than they come."""
        found = EventReader(limit)
        subscriptions = [self.subscribe(kind, found.put) for kind in kinds]
        try:
            yield found
        finally:
            for unsubscribe in subscriptions:
                unsubscribe()

    def publish(self, event: object) -> None:
        """Deliver to all subscribers before this returns, unless called by a subscriber: then after the current one."""
        if self._delivering:
            self._pending.append(event)
            return
        self._delivering = True
        try:
            self._deliver(event)
            while self._pending:
                self._deliver(self._pending.popleft())
        finally:
            self._delivering = False

    def _deliver(self, event: object) -> None:
        for subscriber in self._subscribers.get(type(event), ()):
            try:
                subscriber(event)
            except Exception:
                log.exception("a subscriber failed on %s", type(event).__name__)


class EventReader:
    """An asynchronous iterator over events. When it falls behind, the oldest events are dropped."""

    def __init__(self, limit: int) -> None:
        self._events: deque[Any] = deque(maxlen=limit)
        self._arrived = asyncio.Event()
        self.dropped = 0  # events lost so far: after any, read the state anew

    def put(self, event: object) -> None:
        self.dropped += len(self._events) == self._events.maxlen
        self._events.append(event)
        self._arrived.set()

    def __aiter__(self) -> EventReader:
        return self

    async def __anext__(self) -> Any:
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        return self._events.popleft()


class DaemonState(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"


class DaemonStateChanged(Struct, frozen=True):
    """Published by daemon.py, which no room may import; hence it is defined here."""

    state: DaemonState


class DegradationChanged(Struct, frozen=True):
    """Published by whoever can no longer do, or can do again, what it is for: `status` says what."""
