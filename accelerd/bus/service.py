"""org.accelerd1 on the session bus: its interfaces (interfaces/*.xml), and its objects for as long as the daemon lives.

On a machine without a session bus nothing is shown. Decides nothing about models: every method is an operation of the
control API.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from accelerd.base import names
from accelerd.bus.manager import Methods
from accelerd.bus.object_tree import Tree
from accelerd.control.api import ControlApi
from accelerd.policy.pins import PinChanged
from accelerd.system.dbus.client import BusClient
from accelerd.system.dbus.object_exporter import ObjectExporter

if TYPE_CHECKING:
    from accelerd.system.dbus.glib_export import InterfaceInfo

DIRECTORY: Final = Path(__file__).parent / "interfaces"
CANCELLED_WITH_CALLER: Final = frozenset({(names.BUS_JOB, "Wait")})  # nobody else wants the answer


@cache
def interfaces() -> Mapping[str, InterfaceInfo]:
    """All of them, by name. ImportError without PyGObject."""
    from accelerd.system.dbus.glib_export import parse_interface

    wanted = (names.BUS_MANAGER, names.BUS_MODEL, names.BUS_DEVICE, names.BUS_JOB)
    return {name: parse_interface((DIRECTORY / f"{name}.xml").read_text()) for name in wanted}


def make_exporter(bus: BusClient, changed: Callable[[], None] = lambda: None) -> ObjectExporter:
    """`changed()`: whether the objects are on the bus differs."""
    return ObjectExporter(bus, names.BUS_NAME, names.BUS_PATH, interfaces, changed, CANCELLED_WITH_CALLER)


class BusService:
    """The objects on the bus. `attach` before `begin`."""

    def __init__(self, bus: ObjectExporter | None, runtime: str) -> None:
        """`runtime`: the daemon's runtime directory."""
        self._bus = bus
        self._runtime = runtime
        self._methods: Methods
        self.api: ControlApi
        self.tree: Tree | None = None

    def attach(self, api: ControlApi) -> None:
        """What there is to ask for."""
        self.api = api

    @property
    def degraded(self) -> str | None:
        """Why nobody can call, although there should be a bus."""
        return self._bus.degraded if self._bus is not None else None

    def begin(self) -> None:
        """Publish all objects. No client is there yet."""
        if self._bus is None:
            return
        self._methods = Methods(self.api, self._bus.watch)
        self.tree = Tree(self._bus, self.api, self._methods, self._runtime)
        self.api.parts.events.subscribe(PinChanged, self._on_pin_changed)
        self.tree.begin()

    async def open(self) -> None:
        """Connect. Takes a moment where the bus does not answer; never fails."""
        if self._bus is not None:
            await self._bus.start()
            self.changed()

    def changed(self) -> None:
        """Something that is shown may be different."""
        if self.tree is not None:
            self.tree.changed()

    async def close(self) -> None:
        """Nobody is served any more; whoever waits for a job hears that it was cancelled."""
        await self.api.close()
        if self.tree is not None:
            await self.tree.close()
        if self._bus is not None:
            await self._bus.close()

    def _on_pin_changed(self, changed: PinChanged) -> None:
        pin, end = changed.pin, changed.end
        if self._bus is not None and end is not None and pin.owner in self._methods.claimants:
            self._bus.signal(names.BUS_PATH, names.BUS_MANAGER, "PinReleased", (pin.cookie, end), to=pin.owner)
