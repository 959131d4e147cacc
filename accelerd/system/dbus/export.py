"""The objects on the connection: registered with Gio, their properties answered from here, ObjectManager told.

Lives in the GLib thread. Properties never wait for the event loop; method calls are handed on, whole. Keeps what is
published while there is no connection, and has it all on the next one. Intermediate paths are introspected by GDBus.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from gi.repository import GLib

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.system.dbus.answers import BUG, Answers
from accelerd.system.dbus.callers import Callers
from accelerd.system.dbus.xml import OBJECT_MANAGER, PROPERTIES, interfaces, object_manager
from accelerd.system.records import event

log = logging.getLogger(__name__)

Values = dict[str, Any]  # property → GLib.Variant
Called = Callable[[str, str, str, str, Any, Any], None]
"""(sender, path, interface, method, arguments, invocation): exactly one answer is owed to the invocation."""


class Exports:
    """See the module's text."""

    def __init__(
        self, called: Called, callers: Callers, answers: Answers, later: Callable[[Callable[[], None], int], object]
    ) -> None:
        """`called`: the call counts as one under way, until Callers.end; `later(work, ms)`."""
        self._called = called
        self._callers = callers
        self._answers = answers
        self._later = later
        self._tree: dict[str, dict[str, Values]] = {}
        self._told: dict[str, Any] = {}  # path → its part of GetManagedObjects, until something changes
        self._registered: dict[str, list[int]] = {}
        self._root: int | None = None
        self._connection: Any = None

    def attach(self, connection: Any) -> None:
        """All of it is on this connection."""
        self._connection = connection
        self._root = connection.register_object(names.BUS_PATH, object_manager().info, self._on_call, None, None)
        for path, given in self._tree.items():
            self._register(path, given)

    def detach(self) -> None:
        """The connection has gone, or is about to."""
        for path in list(self._registered):
            self._unregister(path)
        if self._root is not None:
            self._connection.unregister_object(self._root)
            self._root = None
        self._connection = None

    def publish(self, path: str, given: dict[str, Values]) -> None:
        """An object, instead of the one that was there. `given` is ours from now on."""
        before = self._tree.get(path)
        if before is not None:
            self._tell_gone(path, before)
        if before is None or before.keys() != given.keys():  # else a call on its way would find nothing
            self._unregister(path)
            if self._connection is not None:
                self._register(path, given)
        self._tree[path] = given
        self._told.pop(path, None)
        if path != names.BUS_PATH:
            self._tell_tree("InterfacesAdded", GLib.Variant.new_object_path(path), self._object(path))

    def update(self, path: str, interface: str, changed: Values, *, silent: bool = False) -> None:
        """These have changed. `silent`: they are there to be read, nobody is told."""
        self._tree[path][interface].update(changed)
        self._told.pop(path, None)
        if silent:
            return
        known = interfaces()[interface].properties
        told = {name: value for name, value in changed.items() if known[name].emits == "true"}
        invalid = [name for name in changed if known[name].emits == "invalidates"]
        if told or invalid:
            body = GLib.Variant.new_tuple(
                GLib.Variant.new_string(interface), _dictionary(told), GLib.Variant("as", invalid)
            )
            self.signal(path, PROPERTIES, "PropertiesChanged", body)

    def remove(self, path: str) -> None:
        """It has gone."""
        gone = self._tree.pop(path)
        self._told.pop(path, None)
        self._unregister(path)
        self._tell_gone(path, gone)

    def signal(self, path: str, interface: str, member: str, body: Any, to: str | None = None) -> None:
        """To everybody, or one; to nobody while there is no connection."""
        if self._connection is None:
            return
        try:
            self._connection.emit_signal(to, path, interface, member, body)
        except GLib.Error as error:  # it closes just now
            log.debug("%s was not sent: %s", member, error.message)

    # --- calls ------------------------------------------------------------------------------------------------

    def _on_call(
        self, connection: Any, sender: str, path: str, interface: str, method: str, arguments: Any, invocation: Any
    ) -> None:
        """GDBus has checked that all of it is in the XML, the arguments' types too."""
        callers = self._callers
        reads = interface in (PROPERTIES, OBJECT_MANAGER)

        def read_late() -> None:
            callers.end(sender)
            self._on_read(path, interface, method, arguments, invocation)

        try:
            callers.see(sender)
            wait = callers.pace(sender)
            if reads and not wait:
                self._on_read(path, interface, method, arguments, invocation)
                return
            callers.begin(sender, arguments.get_size())
            call = partial(self._called, sender, path, interface, method, arguments, invocation)
            work = read_late if reads else call
            if wait:
                self._later(work, wait)
            else:
                work()
        except AccelError as error:
            self._answers.refuse(invocation, error)
        except Exception:
            event(log, logging.ERROR, f"a call of {method} failed", message_id=names.MSG_BUG, exc_info=True)
            self._answers.refuse(invocation, AccelError("internal", BUG))

    def _on_read(self, path: str, interface: str, method: str, arguments: Any, invocation: Any) -> None:
        if interface == OBJECT_MANAGER:
            self._answers.give(invocation, GLib.Variant.new_tuple(self._objects()))
        else:
            self._on_property(path, method, arguments.unpack(), invocation)

    def _on_property(self, path: str, method: str, arguments: tuple[str, ...], invocation: Any) -> None:
        values = self._tree.get(path, {}).get(arguments[0])
        if values is None:  # GDBus knew it a moment ago
            self._answers.fail(invocation, "org.freedesktop.DBus.Error.UnknownObject", f"there is no object {path}")
        elif method == "Get":
            value = GLib.Variant.new_variant(values[arguments[1]])
            self._answers.give(invocation, GLib.Variant.new_tuple(value))
        else:
            self._answers.give(invocation, GLib.Variant.new_tuple(_dictionary(values)))

    # --- the tree ---------------------------------------------------------------------------------------------

    def _objects(self) -> Any:
        entries = [
            GLib.Variant.new_dict_entry(GLib.Variant.new_object_path(path), self._object(path))
            for path in self._tree
            if path != names.BUS_PATH
        ]
        return GLib.Variant.new_array(GLib.VariantType("{oa{sa{sv}}}"), entries)

    def _object(self, path: str) -> Any:
        """The a{sa{sv}} of one object."""
        if path not in self._told:
            entries = [
                GLib.Variant.new_dict_entry(GLib.Variant.new_string(interface), _dictionary(values))
                for interface, values in self._tree[path].items()
            ]
            self._told[path] = GLib.Variant.new_array(GLib.VariantType("{sa{sv}}"), entries)
        return self._told[path]

    def _tell_tree(self, member: str, path: Any, what: Any) -> None:
        self.signal(names.BUS_PATH, OBJECT_MANAGER, member, GLib.Variant.new_tuple(path, what))

    def _tell_gone(self, path: str, gone: Iterable[str]) -> None:
        if path != names.BUS_PATH:
            self._tell_tree("InterfacesRemoved", GLib.Variant.new_object_path(path), GLib.Variant("as", list(gone)))

    def _register(self, path: str, given: Iterable[str]) -> None:
        self._registered[path] = [
            self._connection.register_object(path, interfaces()[interface].info, self._on_call, None, None)
            for interface in given
        ]

    def _unregister(self, path: str) -> None:
        for number in self._registered.pop(path, ()):
            self._connection.unregister_object(number)


def _dictionary(values: Values) -> Any:
    """An a{sv}."""
    entries = [
        GLib.Variant.new_dict_entry(GLib.Variant.new_string(name), GLib.Variant.new_variant(value))
        for name, value in values.items()
    ]
    return GLib.Variant.new_array(GLib.VariantType("{sv}"), entries)
