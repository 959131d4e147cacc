"""The state of a unit in systemd's user manager: over the session bus where PyGObject is there, else from systemctl."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from accelerd.cli.checks.base import Machine, Surroundings


class Unit(NamedTuple):
    """systemd's own words: LoadState, UnitFileState, ActiveState."""

    load: str
    file: str
    active: str


class Manager(Protocol):
    def state(self, unit: str) -> Unit | None:
        """None: there is no user manager to ask."""
        ...


class Systemctl:
    """By way of `systemctl --user show`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def state(self, unit: str) -> Unit | None:
        argv = ["systemctl", "--user", "show", "--property=LoadState,UnitFileState,ActiveState", unit]
        outcome = self._machine.run(argv)
        if outcome.status != 0:
            return None
        found = dict(line.split("=", 1) for line in outcome.stdout.splitlines() if "=" in line)
        return Unit(found.get("LoadState", ""), found.get("UnitFileState", ""), found.get("ActiveState", ""))


class Bus:
    """By way of org.freedesktop.systemd1 on a session bus as pydbus gives it."""

    def __init__(self, bus: Any) -> None:
        self._bus = bus

    def state(self, unit: str) -> Unit | None:
        try:
            path = self._bus.get(".systemd1").LoadUnit(unit)
            found = self._bus.get(".systemd1", path)
            return Unit(found.LoadState, found.UnitFileState, found.ActiveState)
        except Exception:  # GLib.Error, whose module is not importable everywhere
            return None


def manager(s: Surroundings) -> Manager:
    """The bus when it can be had, systemctl otherwise."""
    if s.bus is not None:
        return Bus(s.bus)
    address = s.env.get("DBUS_SESSION_BUS_ADDRESS")
    if not address:
        return Systemctl(s.machine)
    try:
        import pydbus

        return Bus(pydbus.connect(address))
    except Exception:  # ImportError without PyGObject, GLib.Error without a bus
        return Systemctl(s.machine)
