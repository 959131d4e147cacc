"""Exported objects, on the side of the GLib thread: registered with Gio, their properties answered, changes emitted.

Reads of properties never wait for the event loop; method calls are handed on. What is published without a connection is
registered on the next one. Never blocks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from gi.repository import Gio, GLib
from msgspec import Struct

from accelerd.base import names
from accelerd.base.errors import BUS_NAMES, AccelError
from accelerd.system.dbus.client import PROPERTIES
from accelerd.system.dbus.peers import Callers
from accelerd.system.dbus.port import caller_gone
from accelerd.system.dbus.values import dictionary
from accelerd.system.records import event

log = logging.getLogger(__name__)

BUG: Final = "internal error; see the journal: journalctl --user -u accelerd"
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

Values = dict[str, Any]  # property → GLib.Variant
OnCall = Callable[[str, str, str, str, Any, Any], None]
"""(sender, path, interface, method, arguments, invocation): the invocation must be answered exactly once."""


class PropertyInfo(Struct, frozen=True):
    signature: str
    emits: str  # EmitsChangedSignal: "true", "invalidates", "const", "false"


class InterfaceInfo(Struct, frozen=True):
    """An interface, from its introspection XML: the only place that says which members exist, and of which type."""

    name: str
    info: Any  # Gio.DBusInterfaceInfo
    properties: Mapping[str, PropertyInfo]
    replies: Mapping[str, str]  # method → signature of its out arguments
    signals: Mapping[str, str]


def parse_interface(text: str) -> InterfaceInfo:
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


class ExportedObjects:
    """The objects below `root`, which is their ObjectManager."""

    def __init__(
        self,
        root: str,
        interfaces: Mapping[str, InterfaceInfo],
        on_call: OnCall,
        callers: Callers,
        replies: Replies,
        later: Callable[[Callable[[], None], int], object],
    ) -> None:
        """`on_call`: counts as a call under way until Callers.end; `later(work, ms)`."""
        self._root = root
        self._interfaces = interfaces
        self._call = on_call
        self._callers = callers
        self._replies = replies
        self._later = later
        self._objects: dict[str, dict[str, Values]] = {}
        self._managed: dict[str, Any] = {}  # path → its part of GetManagedObjects, until something changes
        self._registered: dict[str, list[int]] = {}
        self._manager: int | None = None
        self._connection: Any = None

    def attach(self, bus: Any) -> None:
        self._connection = bus.con
        self._manager = register(bus.con, self._root, parse_interface(_OBJECT_MANAGER).info, self._on_call)
        for path, given in self._objects.items():
            self._register(path, given)

    def detach(self) -> None:
        for path in list(self._registered):
            self._unregister(path)
        if self._manager is not None:
            self._connection.unregister_object(self._manager)
            self._manager = None
        self._connection = None

    def publish(self, path: str, given: dict[str, Values]) -> None:
        """Export an object, in the place of one that has the path. `given` belongs to this from now on."""
        before = self._objects.get(path)
        if before is not None:
            self._emit_removed(path, before)
        if before is None or before.keys() != given.keys():  # else a call on its way would find nothing
            self._unregister(path)
            if self._connection is not None:
                self._register(path, given)
        self._objects[path] = given
        self._managed.pop(path, None)
        if path != self._root:
            self._emit_managed("InterfacesAdded", GLib.Variant.new_object_path(path), self._object(path))

    def update(self, path: str, interface: str, changed: Values, *, silent: bool = False) -> None:
        """Set properties; with `silent` nothing is emitted."""
        self._objects[path][interface].update(changed)
        self._managed.pop(path, None)
        if silent:
            return
        known = self._interfaces[interface].properties
        emitted = {name: value for name, value in changed.items() if known[name].emits == "true"}
        invalidated = [name for name in changed if known[name].emits == "invalidates"]
        if emitted or invalidated:
            body = GLib.Variant.new_tuple(
                GLib.Variant.new_string(interface), dictionary(emitted), GLib.Variant("as", invalidated)
            )
            self.signal(path, PROPERTIES, "PropertiesChanged", body)

    def remove(self, path: str) -> None:
        gone = self._objects.pop(path)
        self._managed.pop(path, None)
        self._unregister(path)
        self._emit_removed(path, gone)

    def signal(self, path: str, interface: str, member: str, body: Any, to: str | None = None) -> None:
        """Emit to everybody, or to one unique name; nothing happens without a connection."""
        if self._connection is None:
            return
        try:
            self._connection.emit_signal(to, path, interface, member, body)
        except GLib.Error as error:  # it is being closed
            log.debug("%s was not sent: %s", member, error.message)

    # --- calls ------------------------------------------------------------------------------------------------

    def _on_call(
        self, connection: Any, sender: str, path: str, interface: str, method: str, arguments: Any, invocation: Any
    ) -> None:
        """GDBus has checked member and types against the XML."""
        callers = self._callers
        reads = interface in (PROPERTIES, OBJECT_MANAGER)

        def late() -> None:
            if not callers.there(sender, seen):
                self._replies.refuse(invocation, caller_gone())
                return
            if reads:
                callers.end(sender)
            work()

        try:
            seen = callers.see(sender)
            wait = callers.pace(sender)
            if reads and not wait:
                self._on_read(path, interface, method, arguments, invocation)
                return
            callers.begin(sender, arguments.get_size())
            do = self._on_read if reads else partial(self._call, sender)
            work = partial(do, path, interface, method, arguments, invocation)
            if wait:
                self._later(late, wait)
            else:
                work()
        except AccelError as error:
            self._replies.refuse(invocation, error)
        except Exception:
            event(log, logging.ERROR, f"a call of {method} failed", message_id=names.MSG_BUG, exc_info=True)
            self._replies.refuse(invocation, AccelError("internal", BUG))

    def _on_read(self, path: str, interface: str, method: str, arguments: Any, invocation: Any) -> None:
        if interface == OBJECT_MANAGER:
            self._replies.give(invocation, GLib.Variant.new_tuple(self._managed_objects()))
        else:
            self._on_property(path, method, arguments.unpack(), invocation)

    def _on_property(self, path: str, method: str, arguments: tuple[str, ...], invocation: Any) -> None:
        values = self._objects.get(path, {}).get(arguments[0])
        if values is None:  # withdrawn a moment ago
            self._replies.fail(invocation, "org.freedesktop.DBus.Error.UnknownObject", f"there is no object {path}")
        elif method == "Get":
            value = GLib.Variant.new_variant(values[arguments[1]])
            self._replies.give(invocation, GLib.Variant.new_tuple(value))
        else:
            self._replies.give(invocation, GLib.Variant.new_tuple(dictionary(values)))

    # --- the object manager -----------------------------------------------------------------------------------

    def _managed_objects(self) -> Any:
        entries = [
            GLib.Variant.new_dict_entry(GLib.Variant.new_object_path(path), self._object(path))
            for path in self._objects
            if path != self._root
        ]
        return GLib.Variant.new_array(GLib.VariantType("{oa{sa{sv}}}"), entries)

    def _object(self, path: str) -> Any:
        if path not in self._managed:
            entries = [
                GLib.Variant.new_dict_entry(GLib.Variant.new_string(interface), dictionary(values))
                for interface, values in self._objects[path].items()
            ]
            self._managed[path] = GLib.Variant.new_array(GLib.VariantType("{sa{sv}}"), entries)
        return self._managed[path]

    def _emit_managed(self, member: str, path: Any, what: Any) -> None:
        self.signal(self._root, OBJECT_MANAGER, member, GLib.Variant.new_tuple(path, what))

    def _emit_removed(self, path: str, gone: Iterable[str]) -> None:
        if path != self._root:
            self._emit_managed("InterfacesRemoved", GLib.Variant.new_object_path(path), GLib.Variant("as", list(gone)))

    def _register(self, path: str, given: Iterable[str]) -> None:
        self._registered[path] = [
            register(self._connection, path, self._interfaces[interface].info, self._on_call) for interface in given
        ]

    def _unregister(self, path: str) -> None:
        for number in self._registered.pop(path, ()):
            self._connection.unregister_object(number)


class Replies:
    """Answers method invocations, and frees them.

    Before GLib 2.84 `register_object` leaks a reference to each invocation, and with it the message: `_drop` gives it
    back once GDBus is through with the invocation.
    """

    def __init__(self, later: Callable[[Callable[[], None]], object]) -> None:
        """`later(work)` runs it when the thread has returned from GDBus."""
        self._later = later
        self._answered: list[Any] = []

    def give(self, invocation: Any, values: Any) -> None:
        """`values`: a tuple of the method's out arguments."""
        invocation.return_value(values)
        self._free(invocation)

    def refuse(self, invocation: Any, error: AccelError) -> None:
        self.fail(invocation, names.BUS_ERROR + BUS_NAMES[error.code], error.message)

    def fail(self, invocation: Any, name: str, text: str) -> None:
        invocation.return_dbus_error(name, text.replace("\0", "").encode(errors="replace").decode())
        self._free(invocation)

    def _free(self, invocation: Any) -> None:
        if not self._answered:
            self._later(self._drop)
        self._answered.append(invocation)

    def _drop(self) -> None:
        answered, self._answered = self._answered, []
        for invocation in answered:
            if invocation.__grefcount__ > 1 and hasattr(invocation, "_unref"):
                invocation._unref()


def register(connection: Any, path: str, info: Any, on_call: Callable[..., None]) -> int:
    """Register an object; `on_call` gets its method calls, those of org.freedesktop.DBus.Properties among them."""
    # register_object is deprecated since GLib 2.84, where this came
    method = getattr(connection, "register_object_with_closures2", None) or connection.register_object
    number: int = method(path, info, on_call, None, None)
    return number
