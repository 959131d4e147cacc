"""Asks the helper for the level "high" and keeps it until killed; a refusal is printed and ends it with status 1."""

import signal
import sys

from gi.repository import Gio, GLib

NAME = "org.accelerd1.Helper"
arguments = GLib.Variant("(ss)", ("0000:c1:00.0", "high"))
bus = Gio.bus_get_sync(Gio.BusType.SYSTEM, None)
try:
    bus.call_sync(NAME, "/org/accelerd1/Helper", NAME, "SetLevel", arguments, None, 0, 20_000, None)
except GLib.Error as error:
    print(error.message)
    sys.exit(1)
signal.pause()
