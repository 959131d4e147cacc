"""Which home a model gets: the one its settings name, or the best that this machine has; and, for the engines, where
a model's program is.

Decides by settings and by whether a user's systemd answers; starts nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from accelerd.config.model import ModelSpec
from accelerd.engines.base import ContainerAccess, ContainerLookup, FixedServer
from accelerd.supervise.homes.home import Home, HomeError
from accelerd.supervise.homes.user_manager import UserManager
from accelerd.system.dbus.client import BusError

log = logging.getLogger(__name__)

TENANTS: Final = "lemonade"  # the engine whose models live in a server of many, and the home that has that server


class HomeChoice:
    """Callable: the Home for a model. `look` first, once."""

    def __init__(self, homes: Mapping[str, Home], manager: UserManager | None) -> None:
        """`homes` by kind, "child" among them. `manager` None: there is no systemd here."""
        self._homes = homes
        self._manager = manager
        self._units = False
        self._why_not = "this machine has none"

    async def look(self) -> str | None:
        """Ask the user's systemd whether it is there. Returned: why it does not answer.

        Its answer holds until the next look.
        """
        self._units = False
        if self._manager is None:
            return self._why_not
        try:
            await self._manager.environment()
        except BusError as error:
            self._why_not = str(error)
            log.warning("no systemd user manager answers: %s", error)
            return self._why_not
        self._units = "systemd" in self._homes
        return None

    def __call__(self, spec: ModelSpec) -> Home:
        """HomeError when the home that the model's settings name is not to be had."""
        if spec.engine == TENANTS:
            if TENANTS not in self._homes:
                raise HomeError(f"{spec.name}: accelerd runs no Lemonade Server here")
            return self._homes[TENANTS]
        if spec.home == "auto":
            # What shall not survive needs no unit, unless only a unit can keep its limits.
            wants_unit = spec.survive or needs_unit(spec)
            return self._homes["systemd" if self._units and wants_unit else "child"]
        home = self._homes.get(spec.home)
        if home is None or (home.kind == "systemd" and not self._units):
            why = self._why_not if spec.home == "systemd" else "accelerd cannot do that here"
            raise HomeError(f'{spec.name}: cannot use home = "{spec.home}": {why}; home = "auto" takes what there is')
        return home


def needs_unit(spec: ModelSpec) -> bool:
    """Are there limits that only a control group can keep?"""
    limits = (spec.memory_max, spec.memory_high, spec.cpu_weight, spec.io_class, spec.tasks_max)
    return any(limit is not None for limit in limits)


def container_lookup(homes: Mapping[str, Home]) -> ContainerLookup:
    """For the engines: where a model's program is. `homes` by kind."""

    async def place(spec: ModelSpec) -> ContainerAccess | FixedServer | None:
        home = homes.get(spec.home)
        return await home.program_place(spec) if home is not None else None

    return place
