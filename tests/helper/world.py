"""A machine for the helper: a /sys of ordinary files, a system bus of its own, a stand-in for polkit, callers.

The bus obeys the shipped policy file and starts the helper as the shipped service file says, with a fake /sys.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from gi.repository import Gio, GLib

from accelerd.base import names
from accelerd.helper.gpu import FILE
from tests.harness import eventually

ROOT = Path(__file__).parents[2]
APU = "0000:c1:00.0"
CARD = "0000:03:00.0"
POLKIT = Path(__file__).with_name("polkit.py")
BUS_CONFIG = """<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <servicedir>{services}</servicedir>
  <policy context="default">
    <allow user="*"/>
    <allow receive_sender="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow send_destination="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.PolicyKit1"/>
    <allow send_destination="test.Rival"/>
    <allow own="org.freedesktop.PolicyKit1"/>
    <allow own_prefix="net.hadess"/>
    <allow own_prefix="com.redhat"/>
  </policy>
  <include>{policy}</include>
</busconfig>
"""


class Sysfs:
    """A /sys with PCI devices as the kernel lays them out, in ordinary files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "bus/pci/devices").mkdir(parents=True)

    def add(
        self,
        slot: str = APU,
        *,
        apu: bool = True,
        driver: str = "amdgpu",
        pci_class: str = "0x038000",
        level: str | None = "auto",
    ) -> Path:
        """A device; its directory."""
        directory = self.path / "devices/pci0000:00" / slot
        (directory / "power").mkdir(parents=True)
        (directory / "power/runtime_status").write_text("active\n")
        (directory / "class").write_text(f"{pci_class}\n")
        (directory / "device").write_text("0x1586\n" if apu else "0x7550\n")
        drivers = self.path / "bus/pci/drivers" / driver
        drivers.mkdir(parents=True, exist_ok=True)
        (directory / "driver").symlink_to(os.path.relpath(drivers, directory))
        hwmon = directory / "hwmon/hwmon3"
        hwmon.mkdir(parents=True)
        files = {"name": driver, "temp1_input": "48000", "power1_average": "90000000", "freq1_input": "1755000000"}
        if apu:
            files["in1_label"] = "vddnb"
        else:
            files["power1_cap"] = "304000000"
        for name, text in files.items():
            (hwmon / name).write_text(f"{text}\n")
        (directory / "gpu_busy_percent").write_text("97\n")
        (directory / "pp_dpm_sclk").write_text("0: 600Mhz \n1: 1755Mhz *\n2: 2900Mhz \n")
        if level is not None:
            (directory / FILE).write_text(f"{level}\n")
        (self.path / "bus/pci/devices" / slot).symlink_to(os.path.relpath(directory, self.path / "bus/pci/devices"))
        return directory

    def level(self, slot: str = APU) -> str:
        return (self.path / "bus/pci/devices" / slot / FILE).read_text().strip()

    def put(self, level: str, slot: str = APU) -> None:
        """What another program does."""
        (self.path / "bus/pci/devices" / slot / FILE).write_text(f"{level}\n")

    def becomes(self, level: str, slot: str = APU, within: float = 20) -> None:
        eventually(lambda: self.level(slot) == level, f"{slot} at {level}, it is at {self.level(slot)}", within)


class Refused(Exception):
    """An error answer of the helper; `code` is its name without the prefix."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.code = name.removeprefix(names.HELPER_ERROR)


class Caller:
    """A program on the bus with a connection of its own."""

    def __init__(self, address: str) -> None:
        kind = Gio.DBusConnectionFlags
        flags = kind.AUTHENTICATION_CLIENT | kind.MESSAGE_BUS_CONNECTION
        self.connection = Gio.DBusConnection.new_for_address_sync(address, flags, None, None)

    def call(self, method: str, signature: str = "()", *values: Any, name: str = names.HELPER_NAME) -> Any:
        path = names.HELPER_PATH if name == names.HELPER_NAME else "/org/freedesktop/DBus"
        try:
            answer = self.connection.call_sync(
                name, path, name, method, GLib.Variant(signature, values), None, 0, 20_000, None
            )
        except GLib.Error as error:
            raise Refused(Gio.DBusError.get_remote_error(error) or "", error.message) from None
        return answer.unpack()[0] if answer.n_children() else None

    def set(self, level: str, slot: str = APU) -> int:
        return int(self.call("SetLevel", "(ss)", slot, level))

    def release(self, lease: int) -> None:
        self.call("ReleaseLevel", "(u)", lease)

    def bus(self, method: str, signature: str = "()", *values: Any) -> Any:
        return self.call(method, signature, *values, name="org.freedesktop.DBus")

    def close(self) -> None:
        if not self.connection.is_closed():
            self.connection.close_sync(None)


class World:
    """See the module's text. `idle` is the helper's; nothing but the bus runs at first."""

    def __init__(self, directory: Path, *, idle: int = 60, polkit: bool = True) -> None:
        self.directory = directory
        self.sysfs = Sysfs(directory / "sys")
        self.verdict = directory / "verdict"
        self.runtime = directory / "helper"
        self.config = directory / "helper.conf"
        self.runtime.mkdir()
        self.allow()
        # sockets have room for 107 bytes
        self._short = Path(tempfile.mkdtemp(prefix="acc-"))
        self.address = f"unix:path={self._short}/bus"
        self._write_configuration(idle, polkit)
        self._log = open(directory / "bus.log", "wb")  # noqa: SIM115  (closed in close)
        self._callers: list[Caller] = []
        self._bus = subprocess.Popen(
            ["dbus-daemon", f"--config-file={directory / 'bus.conf'}", "--nofork", "--nopidfile", "--nosyslog"],
            env=self.environment(), stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        eventually(lambda: self._listens() or self._bus.poll() is not None, "the bus listens")
        assert self._bus.poll() is None, self.output()

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "DBUS_SYSTEM_BUS_ADDRESS": self.address,
            "LANG": "C.UTF-8",
        }

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self._short / "bus")) == 0

    def _write_configuration(self, idle: int, polkit: bool) -> None:
        services = self.directory / "services"
        services.mkdir()
        arguments = f"--sysfs {self.sysfs.path} --runtime {self.runtime} --config {self.config} --idle {idle}"
        shipped = (ROOT / "packaging/dbus/org.accelerd1.Helper.service").read_text()
        lines = [line for line in shipped.splitlines() if not line.startswith(("Exec=", "User=", "SystemdService="))]
        lines.append(f"Exec={sys.executable} -m accelerd.helper {arguments}")
        (services / "org.accelerd1.Helper.service").write_text("\n".join(lines) + "\n")
        if polkit:
            command = f"{sys.executable} {POLKIT} {self.verdict} {self.directory / 'asked'}"
            text = f"[D-BUS Service]\nName=org.freedesktop.PolicyKit1\nExec={command}\n"
            (services / "org.freedesktop.PolicyKit1.service").write_text(text)
        policy = (ROOT / "packaging/dbus/org.accelerd1.Helper.conf").read_text()
        policy = policy.replace('user="root"', f'user="{pwd.getpwuid(os.getuid()).pw_name}"')
        (self.directory / "helper-policy.conf").write_text(policy)
        config = BUS_CONFIG.format(
            socket=self._short / "bus", services=services, policy=self.directory / "helper-policy.conf"
        )
        (self.directory / "bus.conf").write_text(config)

    # --- what a test does -------------------------------------------------------------------------------------

    def caller(self) -> Caller:
        caller = Caller(self.address)
        self._callers.append(caller)
        return caller

    def allow(self) -> None:
        self.verdict.write_text("yes")

    def deny(self) -> None:
        self.verdict.write_text("no")

    def hush(self) -> None:
        """polkit never answers."""
        self.verdict.write_text("silent")

    def asked(self) -> list[dict[str, Any]]:
        """What polkit was asked."""
        path = self.directory / "asked"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def helper(self) -> psutil.Process:
        """The helper's process; there must be one."""
        with contextlib.closing(Caller(self.address)) as caller:
            return psutil.Process(int(caller.bus("GetConnectionUnixProcessID", "(s)", names.HELPER_NAME)))

    def helper_runs(self) -> bool:
        with contextlib.closing(Caller(self.address)) as caller:
            return bool(caller.bus("NameHasOwner", "(s)", names.HELPER_NAME))

    def kill_helper(self, number: int = signal.SIGKILL) -> None:
        process = self.helper()
        process.send_signal(number)
        eventually(lambda: not self.helper_runs(), "the helper ends")

    def start_helper(self) -> None:
        """What systemd does after a crash: Restart=on-failure."""
        with contextlib.closing(Caller(self.address)) as caller:
            caller.bus("StartServiceByName", "(su)", names.HELPER_NAME, 0)

    def output(self) -> str:
        return (self.directory / "bus.log").read_text(errors="replace")

    def close(self) -> None:
        for caller in self._callers:
            caller.close()
        children = psutil.Process(self._bus.pid).children(recursive=True)
        self._bus.terminate()
        self._bus.wait(20)
        self._log.close()
        _, alive = psutil.wait_procs(children, timeout=5)
        for process in alive:
            process.kill()
        shutil.rmtree(self._short)
        print(f"--- the bus, the helper, polkit ---\n{self.output()}")  # pytest shows it on failure
        assert not alive, f"left behind: {alive}"


@contextlib.contextmanager
def world(directory: Path, **options: Any) -> Iterator[World]:
    made = World(directory, **options)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session", autouse=True)
def glib_worker(tmp_path_factory: pytest.TempPathFactory) -> None:
    """GLib's own thread for D-Bus begins with the first connection and ends with the process: no test's fault."""
    with world(tmp_path_factory.mktemp("first")) as made:
        made.caller().bus("GetId")
