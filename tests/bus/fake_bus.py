"""A Bus that is a list: what was told, in its order. Knows the shipped XML, and refuses what it does not have."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from accelerd import bus
from accelerd.system.dbus.port import Call, Handler

INTERFACES = Path(bus.__file__).parent / "interfaces"
CONSTANT = "org.freedesktop.DBus.Property.EmitsChangedSignal"


@cache
def described(interface: str) -> ET.Element:
    """The XML of an interface."""
    found = ET.parse(INTERFACES / f"{interface}.xml").getroot().find("interface")
    assert found is not None
    return found


@cache
def properties(interface: str, *, changing: bool = False) -> frozenset[str]:
    """Names; `changing`: of those that may change."""

    def constant(one: ET.Element) -> bool:
        return any(note.get("name") == CONSTANT and note.get("value") == "const" for note in one.iter("annotation"))

    return frozenset(
        str(p.get("name")) for p in described(interface).iter("property") if not changing or not constant(p)
    )


@cache
def methods(interface: str) -> frozenset[str]:
    return frozenset(str(method.get("name")) for method in described(interface).iter("method"))


@dataclass
class FakeBus:
    """See the module's text. `told`: (what, path, …)."""

    listeners: int = 1
    degraded: str | None = None
    told: list[tuple[Any, ...]] = field(default_factory=list)
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    handlers: dict[str, tuple[str, Handler]] = field(default_factory=dict)
    watched: dict[str, Callable[[str], None]] = field(default_factory=dict)

    def publish(self, path: str, interfaces: Mapping[str, Mapping[str, Any]], handler: Handler) -> None:
        assert path not in self.values
        [(interface, values)] = interfaces.items()
        assert values.keys() == properties(interface)
        self.values[path] = dict(values)
        self.handlers[path] = interface, handler
        self.told.append(("added", path))

    def update(self, path: str, interface: str, changed: Mapping[str, Any], *, quiet: bool = False) -> None:
        assert changed.keys() <= properties(interface, changing=True)
        values = self.values[path]
        news = {name: value for name, value in changed.items() if values[name] != value}
        values.update(news)
        if news and (self.listeners or not quiet):
            self.told.append(("changed", path, news))

    def remove(self, path: str) -> None:
        del self.values[path], self.handlers[path]
        self.told.append(("removed", path))

    def signal(self, path: str, interface: str, member: str, args: tuple[Any, ...], to: str | None = None) -> None:
        assert any(one.get("name") == member for one in described(interface).iter("signal"))
        self.told.append((member, path, args, to))

    def watch(self, sender: str, gone: Callable[[str], None]) -> None:
        self.watched[sender] = gone

    async def start(self) -> str | None:
        return self.degraded

    async def close(self) -> None:
        self.told.append(("closed",))

    # --- for tests --------------------------------------------------------------------------------------------

    async def call(self, path: str, method: str, *args: Any, sender: str = ":1.1") -> Any:
        """The answer: its only value, where there is one."""
        interface, handler = self.handlers[path]
        assert method in methods(interface)
        answer = await handler(Call(sender, path, interface, method, args))
        return answer[0] if answer else None

    def changes(self, path: str, name: str) -> list[Any]:
        """The values that a property was told to have, in their order."""
        return [one[2][name] for one in self.told if one[:2] == ("changed", path) and name in one[2]]

    def place(self, matches: Callable[[tuple[Any, ...]], bool]) -> int:
        """Where in the order the first such thing was told."""
        return next(index for index, one in enumerate(self.told) if matches(one))
