"""What happens in accelerd, as `accelctl monitor` tells it: signals of the bus in, events out, each a JSON-ready dict.

Keeps what every object said last, since a change tells only what is new. Pure: no bus, no clock, no terminal. What it
does not know (another object, another property) it leaves out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from accelerd.base.names import BUS_DEVICE, BUS_JOB, BUS_MANAGER, BUS_MODEL, BUS_NO_OBJECT, BUS_PATH
from accelerd.cli.bus_link import PROPERTIES, Signal

MANAGER_OF_OBJECTS: Final = "org.freedesktop.DBus.ObjectManager"
INTERFACES: Final = (BUS_MANAGER, BUS_MODEL, BUS_DEVICE, BUS_JOB)

Event = dict[str, Any]
Values = Mapping[str, Any]


class Mirror:
    """The tree of objects, as far as it has been told."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[str, dict[str, Any]]] = {}  # by path: the interface and its properties

    def begin(self, manager: Values, objects: Mapping[str, Mapping[str, Values]]) -> None:
        """How all is now; what was known before is forgotten."""
        self._said = {BUS_PATH: (BUS_MANAGER, dict(manager))}
        for path, interfaces in objects.items():
            self._keep(path, interfaces)

    def models(self) -> dict[str, list[str]]:
        """The names of models, with their aliases."""
        return {
            str(values["Name"]): list(values.get("Aliases") or ())
            for interface, values in self._said.values()
            if interface == BUS_MODEL and "Name" in values
        }

    def count(self, interface: str) -> int:
        return sum(1 for found, _ in self._said.values() if found == interface)

    def hear(self, signal: Signal) -> Iterator[Event]:
        """What there is to tell of it."""
        member = f"{signal.interface}.{signal.member}"
        if member == f"{PROPERTIES}.PropertiesChanged":
            yield from self._changed(signal.path, str(signal.values[0]), signal.values[1])
        elif member == f"{MANAGER_OF_OBJECTS}.InterfacesAdded":
            yield from self._added(str(signal.values[0]), signal.values[1])
        elif member == f"{MANAGER_OF_OBJECTS}.InterfacesRemoved":
            yield from self._removed(str(signal.values[0]))

    # --- objects that come and go -----------------------------------------------------------------------------

    def _keep(self, path: str, interfaces: Mapping[str, Values]) -> str | None:
        """Its interface, where it is one of ours."""
        for interface in INTERFACES:
            if interface in interfaces:
                self._said[path] = (interface, dict(interfaces[interface]))
                return interface
        return None

    def _added(self, path: str, interfaces: Mapping[str, Values]) -> Iterator[Event]:
        known = path in self._said
        interface = self._keep(path, interfaces)
        if interface is None or known:
            return
        values = self._said[path][1]
        if interface == BUS_MODEL:
            yield {"event": "model", "model": values.get("Name"), "state": values.get("State"), "change": "added"}
        elif interface == BUS_DEVICE:
            yield self._device(values) | {"change": "added"}
        elif interface == BUS_JOB:
            yield self._job(values)

    def _removed(self, path: str) -> Iterator[Event]:
        interface, values = self._said.pop(path, ("", {}))
        if interface == BUS_MODEL:
            yield {"event": "model", "model": values.get("Name"), "state": values.get("State"), "change": "removed"}
        elif interface == BUS_DEVICE:
            yield self._device(values) | {"change": "removed"}

    # --- properties -------------------------------------------------------------------------------------------

    def _changed(self, path: str, interface: str, changed: Values) -> Iterator[Event]:
        found, values = self._said.get(path, ("", {}))
        if found != interface:
            return
        before = dict(values)
        values.update(changed)
        if interface == BUS_MODEL:
            yield from self._model(before, values)
        elif interface == BUS_DEVICE and differ(before, values, "State"):
            yield self._device(values) | {"before": before.get("State")}
        elif interface == BUS_JOB and differ(before, values, "State", "Phase", "Result"):
            yield self._job(values)
        elif interface == BUS_MANAGER:
            yield from self._manager(before, values)

    def _model(self, before: Values, now: Values) -> Iterator[Event]:
        name = now.get("Name")
        if differ(before, now, "State"):
            event = {"event": "model", "model": name, "state": now.get("State"), "before": before.get("State"),
                     "reason": now.get("StateReason") or ""}  # fmt: skip
            code, text = now.get("LastError") or ("", "")
            failed = now.get("State") in ("failed", "backoff")
            yield event | ({"error": {"code": code, "message": text}} if failed and text else {})
        if differ(before, now, "NeedsRestart") and now.get("NeedsRestart"):
            yield {"event": "model", "model": name, "state": now.get("State"), "change": "outdated"}

    def _device(self, values: Values) -> Event:
        return {"event": "device", "device": values.get("Id"), "name": values.get("Name"), "state": values.get("State"),
                "reason": values.get("StateReason") or ""}  # fmt: skip

    def _job(self, values: Values) -> Event:
        event = {"event": "job", "job": values.get("Id"), "kind": values.get("Kind"),
                 "subject": self._name(values.get("Subject")), "state": values.get("State"),
                 "phase": values.get("Phase") or ""}  # fmt: skip
        if values.get("State") == "done":
            event["result"] = values.get("Result")
        if values.get("ErrorMessage"):
            event["error"] = {"name": values.get("ErrorName"), "message": values["ErrorMessage"]}
        return event

    def _manager(self, before: Values, now: Values) -> Iterator[Event]:
        if differ(before, now, "State", "DegradedReasons"):
            yield {"event": "accelerd", "state": now.get("State"), "reasons": list(now.get("DegradedReasons") or ())}
        if differ(before, now, "ConfigGeneration") and before.get("ConfigGeneration"):
            yield {"event": "config", "generation": now.get("ConfigGeneration")}
        if differ(before, now, "Yield"):
            given = now.get("Yield") or before.get("Yield") or {}
            yield {"event": "yield", "yielded": bool(now.get("Yield")), "what": given.get("what") or "",
                   "why": given.get("why") or ""}  # fmt: skip
        if differ(before, now, "Pins"):
            old, new = pins(before.get("Pins") or ()), pins(now.get("Pins") or ())
            yield from (self._pin(new[cookie], True) for cookie in new if cookie not in old)
            yield from (self._pin(old[cookie], False) for cookie in old if cookie not in new)

    def _pin(self, pin: tuple[Any, ...], there: bool) -> Event:
        cookie, model, kind, reason, application = pin
        return {"event": "pin", "cookie": cookie, "kind": kind, "model": self._name(model), "pinned": there,
                "reason": reason, "application_id": application}  # fmt: skip

    def _name(self, path: Any) -> str | None:
        """Of a model or device; None where there is none."""
        if not path or path == BUS_NO_OBJECT:
            return None
        values = self._said.get(str(path), ("", {}))[1]
        return str(values.get("Name") if "Aliases" in values else values.get("Id") or path)


def differ(before: Values, now: Values, *keys: str) -> bool:
    return any(before.get(key) != now.get(key) for key in keys)


def pins(found: Iterable[tuple[Any, ...]]) -> dict[int, tuple[Any, ...]]:
    """By cookie."""
    return {pin[0]: tuple(pin) for pin in found}
