"""A stand-in for polkit on a private bus: answers what a file says, and notes what it was asked.

usage: polkit.py VERDICT-FILE NOTES-FILE   (the verdict is yes, no or silent)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gi.repository import Gio, GLib

NAME = "org.freedesktop.PolicyKit1"
INTERFACE = f"""<node><interface name="{NAME}.Authority"><method name="CheckAuthorization">
<arg name="subject" type="(sa{{sv}})" direction="in"/><arg name="action_id" type="s" direction="in"/>
<arg name="details" type="a{{ss}}" direction="in"/><arg name="flags" type="u" direction="in"/>
<arg name="cancellation_id" type="s" direction="in"/><arg name="result" type="(bba{{ss}})" direction="out"/>
</method></interface></node>"""


def main(verdict: Path, notes: Path) -> None:
    loop = GLib.MainLoop()
    waiting: list[Any] = []  # calls that are never answered must live on

    def on_call(bus: Any, sender: str, path: str, interface: str, method: str, arguments: Any, call: Any) -> None:
        subject, action, _, flags, _ = arguments.unpack()
        with open(notes, "a") as file:
            file.write(json.dumps({"subject": subject, "action": action, "flags": flags}) + "\n")
        said = verdict.read_text().strip()
        if said == "silent":
            waiting.append(call)
        else:
            call.return_value(GLib.Variant("((bba{ss}))", ((said == "yes", False, {}),)))

    connection = Gio.bus_get_sync(Gio.BusType.SYSTEM, None)
    connection.set_exit_on_close(False)
    connection.connect("closed", lambda *_: loop.quit())
    interface = Gio.DBusNodeInfo.new_for_xml(INTERFACE).interfaces[0]
    connection.register_object("/org/freedesktop/PolicyKit1/Authority", interface, on_call, None, None)
    Gio.bus_own_name_on_connection(connection, NAME, Gio.BusNameOwnerFlags.NONE, None, None)
    loop.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
