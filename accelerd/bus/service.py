"""The daemon on the session bus: its objects put together, from the first to the last moment of the daemon.

On a machine without a session bus nothing is shown. Decides nothing about models: every method is an operation of the
control API.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from accelerd import __version__
from accelerd.base.names import BUS_MANAGER, BUS_PATH
from accelerd.bus.manager import Methods
from accelerd.bus.object_tree import Tree
from accelerd.bus.paths import device_path, model_path
from accelerd.control.api import ControlApi
from accelerd.devices.model import Device
from accelerd.policy.pins import PinChanged
from accelerd.scheduler.service import Scheduler
from accelerd.system.dbus.object_exporter import ObjectExporter
from accelerd.system.dbus.port import Variant

CAUSES: Mapping[str, str] = {"unpinned": "released"}  # of the end of a pin, where the bus has another word for it


class Owner(Protocol):
    """The daemon, as far as it is shown."""

    @property
    def state(self) -> str:
        """ "starting", "running", "draining"."""
        ...

    @property
    def endpoints(self) -> list[str]: ...
    @property
    def generation(self) -> int:
        """How many configurations were in force."""
        ...

    def degraded(self) -> list[str]:
        """What is missing, a clause each."""
        ...


class BusService:
    """The objects on the bus. `attach` before `begin`."""

    def __init__(
        self,
        bus: ObjectExporter | None,
        scheduler: Scheduler,
        devices: Callable[[], tuple[Device, ...]],
        runtime: str,
    ) -> None:
        """`runtime`: the daemon's runtime directory."""
        self._bus = bus
        self._scheduler = scheduler
        self._devices = devices
        self._runtime = runtime
        self._owner: Owner
        self._methods: Methods
        self.api: ControlApi
        self.tree: Tree | None = None

    def attach(self, owner: Owner, api: ControlApi) -> None:
        """The daemon, and what there is to ask for."""
        self._owner, self.api = owner, api

    @property
    def degraded(self) -> str | None:
        """Why nobody can call, although there should be a bus."""
        return self._bus.degraded if self._bus is not None else None

    # --- life -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Publish all objects. No client is there yet."""
        if self._bus is None:
            return
        self._methods = Methods(self.api, self._devices, self._bus.watch)
        self.tree = Tree(self._bus, self.api, self._methods, self._scheduler, self._devices, self.properties)
        self.api.events.subscribe(PinChanged, self._on_pin_changed)
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

    # --- what it shows of the daemon itself -------------------------------------------------------------------

    def properties(self) -> dict[str, Any]:
        """The Manager's, but for its counts."""
        owner = self._owner
        reasons, state = owner.degraded(), owner.state
        return {
            "Version": __version__,
            "RuntimeDirectory": self._runtime,
            "Features": [],
            "State": "degraded" if state == "running" and reasons else state,
            "DegradedReasons": reasons,
            "Endpoints": owner.endpoints,
            "ConfigGeneration": owner.generation,
            "Pins": [
                (pin.cookie, model_path(pin.model), "hold" if pin.hold else "pin", pin.reason, pin.application_id)
                for pin in self.api.pins.all()
            ],
            "Yield": self._yield(),
        }

    def _yield(self) -> dict[str, Any]:
        given = self._scheduler.memory.yielded
        if given is None:
            return {}
        paths = [device_path(id) for id in self._ids() if given.pools is not None and id in given.pools]
        return {
            "what": self.api.yielding.what,
            "why": given.why,
            "devices": Variant("ao", paths),
            "until-monotonic-usec": Variant("t", round(given.until * 1e6) if given.until is not None else 0),
        }

    def _ids(self) -> list[str]:
        return [device.id for device in self._devices()]

    def _on_pin_changed(self, changed: PinChanged) -> None:
        pin, end = changed.pin, changed.end
        if self._bus is not None and end is not None and pin.owner in self._methods.claimants:
            cause = CAUSES.get(end, end)
            self._bus.signal(BUS_PATH, BUS_MANAGER, "PinReleased", (pin.cookie, cause), to=pin.owner)
