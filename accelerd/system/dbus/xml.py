"""Interfaces, parsed from their introspection XML: the only place that says which members exist, and of which type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from gi.repository import Gio

EMITS: Final = "org.freedesktop.DBus.Property.EmitsChangedSignal"
OBJECT_MANAGER: Final = "org.freedesktop.DBus.ObjectManager"
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
class PropertyInfo:
    signature: str
    emits: str  # EmitsChangedSignal: "true", "invalidates", "const", "false"


@dataclass(frozen=True)
class InterfaceInfo:
    name: str
    info: Any  # Gio.DBusInterfaceInfo
    properties: Mapping[str, PropertyInfo]
    replies: Mapping[str, str]  # method → signature of its out arguments
    signals: Mapping[str, str]


@cache
def object_manager() -> InterfaceInfo:
    """org.freedesktop.DBus.ObjectManager."""
    return parse(_OBJECT_MANAGER)


def parse(text: str) -> InterfaceInfo:
    """The one interface of a node."""
    [info] = Gio.DBusNodeInfo.new_for_xml(text).interfaces
    default = Gio.DBusAnnotationInfo.lookup(info.annotations, EMITS) or "true"
    return InterfaceInfo(
        name=info.name,
        info=info,
        properties={
            one.name: PropertyInfo(one.signature, Gio.DBusAnnotationInfo.lookup(one.annotations, EMITS) or default)
            for one in info.properties
        },
        replies={one.name: _tuple_of(one.out_args) for one in info.methods},
        signals={one.name: _tuple_of(one.args) for one in info.signals},
    )


def _tuple_of(arguments: Any) -> str:
    return "(" + "".join(one.signature for one in arguments) + ")"
