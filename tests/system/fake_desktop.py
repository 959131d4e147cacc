"""Stand-ins for logind's sleep, UPower, power-profiles-daemon and a notification service, which a test drives.

As a program it is one of them: it takes the bus's address, which one, and options; a line of JSON on stdin is a command
and its answer a line on stdout. They behave as the real ones do where accelerd can see it: logind waits for its delay
inhibitors, at most as long as it says, and gives none while it prepares.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from gi.repository import Gio, GLib

LOGIND = """<node><interface name="org.freedesktop.login1.Manager">
  <method name="Inhibit">
    <arg name="what" type="s" direction="in"/><arg name="who" type="s" direction="in"/>
    <arg name="why" type="s" direction="in"/><arg name="mode" type="s" direction="in"/>
    <arg name="pipe_fd" type="h" direction="out"/>
  </method>
  <property name="InhibitDelayMaxUSec" type="t" access="read"/>
  <property name="PreparingForSleep" type="b" access="read"/>
  <signal name="PrepareForSleep"><arg type="b"/></signal>
</interface></node>"""
UPOWER = """<node><interface name="org.freedesktop.UPower">
  <property name="OnBattery" type="b" access="read"/>
</interface></node>"""
PROFILES = """<node><interface name="{name}">
  <property name="ActiveProfile" type="s" access="readwrite"/>
</interface></node>"""
NOTIFICATIONS = """<node><interface name="org.freedesktop.Notifications">
  <method name="GetCapabilities"><arg type="as" direction="out"/></method>
  <method name="Notify">
    <arg name="app_name" type="s" direction="in"/><arg name="replaces_id" type="u" direction="in"/>
    <arg name="app_icon" type="s" direction="in"/><arg name="summary" type="s" direction="in"/>
    <arg name="body" type="s" direction="in"/><arg name="actions" type="as" direction="in"/>
    <arg name="hints" type="a{sv}" direction="in"/><arg name="expire_timeout" type="i" direction="in"/>
    <arg name="id" type="u" direction="out"/>
  </method>
  <method name="CloseNotification"><arg name="id" type="u" direction="in"/></method>
  <signal name="NotificationClosed"><arg type="u"/><arg type="u"/></signal>
</interface></node>"""


class Fake:
    """One service on one connection."""

    def __init__(self, address: str, options: dict[str, Any]) -> None:
        flags = Gio.DBusConnectionFlags
        self.bus = Gio.DBusConnection.new_for_address_sync(
            address, flags.AUTHENTICATION_CLIENT | flags.MESSAGE_BUS_CONNECTION, None, None
        )
        self.options = options

    def publish(self, path: str, xml: str) -> str:
        interface = Gio.DBusNodeInfo.new_for_xml(xml).interfaces[0]
        self.bus.register_object(path, interface, self._called, self._read, None)
        return str(interface.name)

    def own(self, *names: str) -> None:
        left = set(names)

        def owned(connection: Any, name: str) -> None:
            left.discard(name)
            if not left:
                say("ready", plain=True)

        for name in names:
            Gio.bus_own_name_on_connection(self.bus, name, Gio.BusNameOwnerFlags.NONE, owned, None)

    def changed(self, path: str, interface: str, name: str, value: Any) -> None:
        arguments = GLib.Variant("(sa{sv}as)", (interface, {name: value}, []))
        self.bus.emit_signal(None, path, "org.freedesktop.DBus.Properties", "PropertiesChanged", arguments)

    def _called(self, bus: Any, sender: str, path: str, interface: str, method: str, args: Any, call: Any) -> None:
        getattr(self, f"call_{method}")(call, *args.unpack())

    def _read(self, bus: Any, sender: str, path: str, interface: str, name: str) -> Any:
        return self.value(name)

    def value(self, name: str) -> Any:
        raise NotImplementedError

    def command(self, name: str, *values: Any) -> Any:
        answer = getattr(self, f"do_{name}")(*values)
        self.bus.flush_sync(None)
        return answer


class Logind(Fake):
    """`delay`: seconds that it waits; `refuse`: it gives no inhibitor."""

    path = "/org/freedesktop/login1"

    def __init__(self, address: str, options: dict[str, Any]) -> None:
        super().__init__(address, options)
        self.preparing = False
        self.inhibitors: dict[int, list[str]] = {}
        self.timer = 0
        self.slept: list[str] = []
        self.interface = self.publish(self.path, LOGIND)
        self.own("org.freedesktop.login1")

    def value(self, name: str) -> Any:
        if name == "PreparingForSleep":
            return GLib.Variant("b", self.preparing)
        return GLib.Variant("t", int(self.options.get("delay", 5) * 1e6))

    def call_Inhibit(self, call: Any, *what: str) -> None:
        if self.options.get("refuse"):
            call.return_dbus_error("org.freedesktop.DBus.Error.AccessDenied", "Permission denied")
            return
        if self.preparing:
            call.return_dbus_error(
                "org.freedesktop.login1.OperationInProgress",
                "The operation inhibition has been requested for is already running",
            )
            return
        reading, writing = os.pipe()
        self.inhibitors[reading] = list(what)
        GLib.unix_fd_add_full(GLib.PRIORITY_DEFAULT, reading, GLib.IOCondition.HUP, self._dropped)
        handed = Gio.UnixFDList.new()
        handed.append(writing)
        os.close(writing)
        call.return_value_with_unix_fd_list(GLib.Variant("(h)", (0,)), handed)

    def _dropped(self, fd: int, *_: Any) -> bool:
        os.close(fd)
        del self.inhibitors[fd]
        if self.timer and not self.inhibitors:
            self._sleep("let")
        return False

    def _sleep(self, how: str) -> bool:
        if how == "let":
            GLib.source_remove(self.timer)
        self.timer = 0
        self.slept.append(how)
        return False

    def do_inhibitors(self) -> list[list[str]]:
        return list(self.inhibitors.values())

    def do_prepare(self) -> None:
        self.preparing = True
        self.bus.emit_signal(None, self.path, self.interface, "PrepareForSleep", GLib.Variant("(b)", (True,)))
        if self.inhibitors:
            self.timer = GLib.timeout_add(int(self.options.get("delay", 5) * 1000), self._sleep, "waited")
        else:
            self.slept.append("at once")

    def do_slept(self) -> list[str]:
        """How each sleep began: "let", "waited" (in vain), "at once"."""
        return self.slept

    def do_wake(self) -> None:
        self.preparing = False
        self.bus.emit_signal(None, self.path, self.interface, "PrepareForSleep", GLib.Variant("(b)", (False,)))


class UPower(Fake):
    path = "/org/freedesktop/UPower"

    def __init__(self, address: str, options: dict[str, Any]) -> None:
        super().__init__(address, options)
        self.on_battery = bool(options.get("on_battery"))
        self.interface = self.publish(self.path, UPOWER)
        self.own("org.freedesktop.UPower")

    def value(self, name: str) -> Any:
        return GLib.Variant("b", self.on_battery)

    def do_battery(self, on: bool) -> None:
        self.on_battery = on
        self.changed(self.path, self.interface, "OnBattery", self.value("OnBattery"))


class Profiles(Fake):
    """power-profiles-daemon: under both of its names, or (`old`) under the older one alone."""

    both = (
        ("net.hadess.PowerProfiles", "/net/hadess/PowerProfiles"),
        ("org.freedesktop.UPower.PowerProfiles", "/org/freedesktop/UPower/PowerProfiles"),
    )

    def __init__(self, address: str, options: dict[str, Any]) -> None:
        super().__init__(address, options)
        self.profile = options.get("profile", "balanced")
        self.names = self.both[:1] if options.get("old") else self.both
        for name, path in self.names:
            self.publish(path, PROFILES.format(name=name))
        self.own(*(name for name, _ in self.names))

    def value(self, name: str) -> Any:
        return GLib.Variant("s", self.profile)

    def do_profile(self, profile: str) -> None:
        self.profile = profile
        for name, path in self.names:
            self.changed(path, name, "ActiveProfile", self.value("ActiveProfile"))


class Notifier(Fake):
    """`capabilities` as GetCapabilities has them."""

    path = "/org/freedesktop/Notifications"

    def __init__(self, address: str, options: dict[str, Any]) -> None:
        super().__init__(address, options)
        self.next = options.get("first", 1)
        self.shown: dict[int, dict[str, Any]] = {}
        self.log: list[dict[str, Any]] = []
        self.interface = self.publish(self.path, NOTIFICATIONS)
        self.own("org.freedesktop.Notifications")

    def call_GetCapabilities(self, call: Any) -> None:
        found = self.options.get("capabilities", ["body", "body-markup"])
        call.return_value(GLib.Variant("(as)", (found,)))

    def call_Notify(
        self, call: Any, app: str, replaces: int, icon: str, summary: str, body: str, actions: list[str],
        hints: dict[str, Any], expires: int,
    ) -> None:  # fmt: skip
        number = replaces
        if not number:
            number, self.next = self.next, self.next + 1
        self.shown[number] = note = {
            "app": app, "replaces": replaces, "summary": summary, "body": body, "urgency": hints["urgency"],
        }  # fmt: skip
        self.log.append(note)
        call.return_value(GLib.Variant("(u)", (number,)))

    def call_CloseNotification(self, call: Any, number: int) -> None:
        if self.shown.pop(number, None) is None:
            call.return_dbus_error("org.freedesktop.DBus.Error.InvalidArgs", "there is no such notification")
            return
        self.bus.emit_signal(None, self.path, self.interface, "NotificationClosed", GLib.Variant("(uu)", (number, 3)))
        call.return_value(None)

    def do_shown(self) -> dict[int, dict[str, Any]]:
        return self.shown

    def do_log(self) -> list[dict[str, Any]]:
        return self.log

    def do_dismiss(self, number: int) -> None:
        """A person has seen it."""
        self.shown.pop(number)


KINDS = {"logind": Logind, "upower": UPower, "profiles": Profiles, "notifications": Notifier}


def say(answer: Any, *, plain: bool = False) -> None:
    print(answer if plain else json.dumps(answer), flush=True)


def main(address: str, kind: str, options: str) -> None:
    """Serve until stdin ends."""
    fake = KINDS[kind](address, json.loads(options))
    loop = GLib.MainLoop()

    def read(*_: Any) -> bool:
        line = sys.stdin.readline()
        if not line:
            loop.quit()
            return False
        say(fake.command(*json.loads(line)))
        return True

    GLib.io_add_watch(sys.stdin.fileno(), GLib.PRIORITY_DEFAULT, GLib.IOCondition.IN | GLib.IOCondition.HUP, read)
    loop.run()


if __name__ == "__main__":
    main(*sys.argv[1:4])
