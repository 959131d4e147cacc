"""A private bus with stand-ins for GameMode and logind, which a test drives.

As a program it is one service: it takes the bus's address, "gamemode" or "logind", and from stdin a value a line, which
becomes its property and is signalled as the real one does it. GameMode's signals and property are those of gamemoded.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
CONFIG = """<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <servicedir>{services}</servicedir>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""
GAMEMODE = """<node><interface name="com.feralinteractive.GameMode">
  <property name="ClientCount" type="i" access="read"/>
  <signal name="GameRegistered"><arg type="i"/><arg type="o"/></signal>
  <signal name="GameUnregistered"><arg type="i"/><arg type="o"/></signal>
</interface></node>"""
LOGIND = """<node><interface name="org.freedesktop.login1.Manager">
  <property name="PreparingForSleep" type="b" access="read"/>
  <signal name="PrepareForSleep"><arg type="b"/></signal>
</interface></node>"""
SERVICES = {
    "gamemode": ("com.feralinteractive.GameMode", "/com/feralinteractive/GameMode", GAMEMODE),
    "logind": ("org.freedesktop.login1", "/org/freedesktop/login1", LOGIND),
}


class Bus:
    """dbus-daemon, with services that a test starts. `address` outlives the daemon: it may be started again."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        # sockets have room for 107 bytes
        self._short = Path(tempfile.mkdtemp(prefix="acc-"))
        self.address = f"unix:path={self._short}/bus"
        self._services = directory / "services"
        self._services.mkdir()
        self._config = directory / "bus.conf"
        self._config.write_text(CONFIG.format(socket=self._short / "bus", services=self._services))
        self._daemon: subprocess.Popen[bytes] | None = None
        self._children: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        from tests.harness import eventually

        self._daemon = daemon = subprocess.Popen(
            ["dbus-daemon", f"--config-file={self._config}", "--nofork", "--nopidfile", "--nosyslog"],
            stdin=subprocess.DEVNULL,
        )
        eventually(lambda: self._listens() or daemon.poll() is not None, "the bus listens")
        assert daemon.poll() is None

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self._short / "bus")) == 0

    def service(self, kind: str, value: int = 0) -> Service:
        """One that has its name when this returns; its property is `value`."""
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.system.fake_services", self.address, kind, str(value)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._children.append(child)
        service = Service(child)
        assert service.heard() == "ready"
        return service

    def player(self, kind: str, **options: Any) -> Player:
        """One of tests/system/fake_desktop.py, that has its name when this returns."""
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.system.fake_desktop", self.address, kind, json.dumps(options)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._children.append(child)
        player = Player(child)
        assert player.heard() == "ready"
        return player

    def activatable(self, kind: str, mark: Path) -> None:
        """One that the bus would start; `mark` would be there then. Any well-known name will do, too."""
        name = SERVICES[kind][0] if kind in SERVICES else kind
        text = f"[D-BUS Service]\nName={name}\nExec=/usr/bin/touch {mark}\n"
        (self._services / f"{name}.service").write_text(text)

    def stop(self) -> None:
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(20)
            self._daemon = None

    def close(self) -> None:
        for child in self._children:
            Service(child).stop()
        self.stop()
        shutil.rmtree(self._short)


class Service:
    """One of them."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def heard(self) -> str:
        return _pipe(self._child.stdout).readline().strip()

    def set(self, value: int) -> None:
        """What a game that registers, or a machine that goes to sleep, does."""
        pipe = _pipe(self._child.stdin)
        pipe.write(f"{value}\n")
        pipe.flush()
        assert self.heard() == "done"

    def suspend(self) -> None:
        """It is there and answers nothing."""
        self._child.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._child.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        for pipe in (self._child.stdin, self._child.stdout):
            _pipe(pipe).close()
        self._child.terminate()
        self._child.wait(20)


class Player(Service):
    """One of them that answers a line of JSON with another."""

    def ask(self, command: str, *values: Any) -> Any:
        pipe = _pipe(self._child.stdin)
        pipe.write(json.dumps([command, *values]) + "\n")
        pipe.flush()
        return json.loads(self.heard())


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@contextlib.contextmanager
def private_bus(directory: Path) -> Iterator[Bus]:
    """A bus that runs."""
    bus = Bus(directory)
    try:
        bus.start()
        yield bus
    finally:
        bus.close()


def main(address: str, kind: str, first: str) -> None:
    """Serve until stdin ends."""
    from gi.repository import Gio, GLib

    name, path, xml = SERVICES[kind]
    flags = Gio.DBusConnectionFlags
    bus = Gio.DBusConnection.new_for_address_sync(
        address, flags.AUTHENTICATION_CLIENT | flags.MESSAGE_BUS_CONNECTION, None, None
    )
    value = int(first)
    interface = Gio.DBusNodeInfo.new_for_xml(xml).interfaces[0]

    def variant() -> Any:
        return GLib.Variant("i", value) if kind == "gamemode" else GLib.Variant("b", bool(value))

    bus.register_object(path, interface, None, lambda *_: variant(), None)
    Gio.bus_own_name_on_connection(bus, name, Gio.BusNameOwnerFlags.NONE, lambda *_: print("ready", flush=True), None)
    loop = GLib.MainLoop()

    def read(*_: Any) -> bool:
        nonlocal value
        line = sys.stdin.readline()
        if not line:
            loop.quit()
            return False
        before, value = value, int(line)
        if kind == "gamemode":
            member = "GameRegistered" if value > before else "GameUnregistered"
            arguments = GLib.Variant("(io)", (4711, f"{path}/Games/4711"))
            changed = GLib.Variant("(sa{sv}as)", (interface.name, {"ClientCount": variant()}, []))
            bus.emit_signal(None, path, interface.name, member, arguments)
            bus.emit_signal(None, path, "org.freedesktop.DBus.Properties", "PropertiesChanged", changed)
        else:
            bus.emit_signal(None, path, interface.name, "PrepareForSleep", GLib.Variant("(b)", (bool(value),)))
        bus.flush_sync(None)
        print("done", flush=True)
        return True

    GLib.io_add_watch(sys.stdin.fileno(), GLib.PRIORITY_DEFAULT, GLib.IOCondition.IN | GLib.IOCondition.HUP, read)
    loop.run()


if __name__ == "__main__":
    main(*sys.argv[1:4])
