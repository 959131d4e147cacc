"""The interfaces as their XML files have them: the files are the only place that says what there is and of which type.

Reads the files of the package once. Knows no connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from gi.repository import Gio

from accelerd.base import names

DIRECTORY: Final = Path(__file__).parents[2] / "bus" / "interfaces"
EMITS: Final = "org.freedesktop.DBus.Property.EmitsChangedSignal"
OBJECT_MANAGER: Final = "org.freedesktop.DBus.ObjectManager"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_OBJECT_MANAGER: Final = f"""<node><interface name="{OBJECT_MANAGER}">
  <method name="GetManagedObjects">
    <arg name="objects" type="a{{oa{{sa{{sv}}}}}}" direction="out"/>
  </method>
  <signal name="InterfacesAdded">
    <arg name="object" type="o"/>
    <arg name="interfaces" type="a{{sa{{sv}}}}"/>
  </signal>
  <signal name="InterfacesRemoved">
    <arg name="object" type="o"/>
    <arg name="interfaces" type="as"/>
  </signal>
</interface></node>"""


@dataclass(frozen=True)
class Property:
    signature: str
    emits: str  # "true", "invalidates", "const", "false"


@dataclass(frozen=True)
class Interface:
    """One of them, as the transport needs it."""

    name: str
    info: Any  # Gio.DBusInterfaceInfo
    properties: Mapping[str, Property]
    replies: Mapping[str, str]  # method → signature of its answer
    signals: Mapping[str, str]


@cache
def interfaces() -> Mapping[str, Interface]:
    """All of them, by name."""
    wanted = (names.BUS_MANAGER, names.BUS_MODEL, names.BUS_DEVICE, names.BUS_JOB)
    return {name: parse((DIRECTORY / f"{name}.xml").read_text()) for name in wanted}


@cache
def object_manager() -> Interface:
    """The standard's."""
    return parse(_OBJECT_MANAGER)


def parse(text: str) -> Interface:
    """The one interface of a node."""
    [info] = Gio.DBusNodeInfo.new_for_xml(text).interfaces
    default = Gio.DBusAnnotationInfo.lookup(info.annotations, EMITS) or "true"
    return Interface(
        name=info.name,
        info=info,
        properties={
            one.name: Property(one.signature, Gio.DBusAnnotationInfo.lookup(one.annotations, EMITS) or default)
            for one in info.properties
        },
        replies={one.name: _together(one.out_args) for one in info.methods},
        signals={one.name: _together(one.args) for one in info.signals},
    )


def _together(arguments: Any) -> str:
    return "(" + "".join(one.signature for one in arguments) + ")"
