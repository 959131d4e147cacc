"""Properties of D-Bus services, watched. Starts no service and knows no property's meaning."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from accelerd.system.dbus.client import DBUS, DBUS_PATH, PROPERTIES, BusClient, BusError
from accelerd.system.dbus.thread import tell

if TYPE_CHECKING:
    from accelerd.system.dbus.connection import Subscriptions

log = logging.getLogger(__name__)

GET_TIMEOUT: Final = 5.0  # s


class WatchedProperty(Struct, frozen=True):
    service: str  # a well-known name
    path: str
    interface: str
    name: str
    signals: Sequence[str] = ()  # of the interface, beside PropertiesChanged: the value may differ after one


class PropertyWatch:
    """Some properties of one bus, watched together."""

    def __init__(
        self, bus: BusClient, properties: Sequence[WatchedProperty], changed: Callable[[tuple[Any, ...]], None]
    ) -> None:
        """`changed(values)` is called on the loop, at first and with every change: None for a service that is away."""
        self._bus = bus
        self._properties = tuple(properties)
        self._changed = changed
        self._connected = False
        self._news = asyncio.Event()
        self._values: tuple[Any, ...] | None = None
        self._subscriptions: Subscriptions | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, on the running loop."""
        self._task = asyncio.create_task(self._run(), name="watch of D-Bus properties")

    def close(self) -> None:
        """`changed` is not called any more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._subscriptions is not None:
            self._bus.detach(self._subscriptions)
            self._subscriptions = None

    async def _run(self) -> None:
        try:
            await self._bus.ready()
        except BusError as error:
            services = ", ".join(dict.fromkeys(one.service for one in self._properties))
            log.debug("not watched: %s: %s", services, error.message)
            self._deliver(self._none())
            return
        self._subscribe()
        while True:
            await self._news.wait()
            self._news.clear()
            self._deliver(await self._read() if self._connected else self._none())

    def _subscribe(self) -> None:
        from accelerd.system.dbus.connection import SignalRule, Subscriptions

        services = dict.fromkeys(one.service for one in self._properties)
        rules = [SignalRule(DBUS, DBUS, "NameOwnerChanged", DBUS_PATH, service) for service in services]
        for one in self._properties:
            rules.append(SignalRule(one.service, PROPERTIES, "PropertiesChanged", one.path, one.interface))
            rules += [SignalRule(one.service, one.interface, signal, one.path) for signal in one.signals]
        heard = partial(tell, asyncio.get_running_loop(), self._heard)
        self._subscriptions = Subscriptions(rules, heard)
        self._bus.attach(self._subscriptions)

    def _heard(self, connected: bool) -> None:
        self._connected = connected
        self._news.set()

    async def _read(self) -> tuple[Any, ...]:
        return tuple([await self._get(one) for one in self._properties])

    async def _get(self, one: WatchedProperty) -> Any:
        try:
            return await self._bus.get_property(
                one.service, one.path, one.interface, one.name, within=GET_TIMEOUT, start=False
            )
        except BusError as error:
            log.debug("%s does not answer: %s", one.service, error.message)
            return None

    def _none(self) -> tuple[Any, ...]:
        return (None,) * len(self._properties)

    def _deliver(self, values: tuple[Any, ...]) -> None:
        if values == self._values:
            return
        self._values = values
        try:
            self._changed(values)
        except Exception:  # a bug of the listener; the next change is another chance
            log.exception("cannot follow a property on the %s", self._bus.bus)
