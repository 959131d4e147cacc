"""org.accelerd1 on the session bus: the name, the interfaces of interfaces/*.xml, and the exporter that has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from accelerd.base import names
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
