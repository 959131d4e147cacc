"""Which way accelctl takes: the session bus or the control socket, and what it says of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from accelerd.base import names
from accelerd.base.ports import Roots
from accelerd.cli.bus_link import BUS, BUS_PATH, Link
from accelerd.cli.way import Chooser
from tests.harness import ROOT, eventually
from tests.system.fake_services import Bus, private_bus

from .conftest import Ctl
from .fake_bus import FakeBus
from .fake_daemon import FLEET, FakeDaemon, Reply, status

WAYS = ("bus",)


def hosts(daemon: FakeDaemon) -> set[str]:
    """Who was asked: "bus", or "localhost" over the socket."""
    found = {request.host for request in daemon.requests}
    daemon.requests.clear()
    return found


def test_the_bus_where_this_accelerd_is_on_it(ctl: Ctl, daemon: FakeDaemon) -> None:
    assert ctl("status").status == 0
    assert hosts(daemon) == {"bus"}
    found = ctl.client().way()
    assert (found.name, found.fix) == ("bus", "")
    assert found.why == f"org.accelerd1, which runs in {ctl.socket.parent}"


def test_a_socket_that_is_named_is_used(ctl: Ctl, daemon: FakeDaemon) -> None:
    assert ctl("--socket", str(ctl.socket), "status").status == 0
    assert hosts(daemon) == {"localhost"}
    assert ctl("status", ACCELERD_SOCKET=str(ctl.socket)).status == 0
    assert hosts(daemon) == {"localhost"}


def test_B26_no_session_bus(ctl: Ctl, daemon: FakeDaemon) -> None:
    for address in ("", "unix:path=/nonexistent/bus", "nonsense"):
        assert ctl("status", DBUS_SESSION_BUS_ADDRESS=address).status == 0
        assert hosts(daemon) == {"localhost"}, address


def test_the_usual_bus_is_found_without_a_variable(ctl: Ctl, daemon: FakeDaemon, session_bus: Bus) -> None:
    usual = ctl.socket.parents[1] / "bus"
    usual.symlink_to(session_bus.address.removeprefix("unix:path="))
    assert ctl("status", DBUS_SESSION_BUS_ADDRESS="").status == 0
    assert hosts(daemon) == {"bus"}


def test_without_pygobject(ctl: Ctl, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("gi", "gi.repository"):
        monkeypatch.setitem(sys.modules, module, None)
    assert ctl("status").status == 0
    assert hosts(daemon) == {"localhost"}
    found = ctl.client().way()
    assert (found.name, found.fix) == ("socket", "sudo apt install python3-gi")
    assert "which the bus needs" in found.why


def test_another_accelerd_on_the_bus_is_not_asked(ctl: Ctl, daemon: FakeDaemon, bus: FakeBus) -> None:
    bus.properties[names.BUS_PATH][names.BUS_MANAGER]["RuntimeDirectory"] = "/run/user/7/accelerd"
    assert ctl("status").status == 0
    assert ctl("load", "embed").status == 1
    assert hosts(daemon) == {"localhost"}
    assert "another accelerd, that of /run/user/7/accelerd" in ctl.client().way().why


def test_a_runtime_directory_by_another_path_is_the_same(ctl: Ctl, daemon: FakeDaemon, bus: FakeBus) -> None:
    link = ctl.home / "link"
    link.symlink_to(ctl.socket.parent)
    bus.properties[names.BUS_PATH][names.BUS_MANAGER]["RuntimeDirectory"] = str(link)
    assert ctl("status").status == 0
    assert hosts(daemon) == {"bus"}


def test_a_name_owner_that_is_no_accelerd(ctl: Ctl, where: Path, session_bus: Bus) -> None:
    link = Link(session_bus.address)
    link.connect(20)
    link.call(BUS, BUS_PATH, f"{BUS}.RequestName", "(su)", names.BUS_NAME, 4, within=20)
    with FakeDaemon(where, {"GET status": Reply(status(*FLEET))}).serve() as daemon:
        assert ctl("status").status == 0
    assert hosts(daemon) == {"localhost"}
    assert "does not say which accelerd it is" in ctl.client().way().why
    link.close()


def test_an_accelerd_that_hangs_on_the_bus(ctl: Ctl, daemon: FakeDaemon, bus: FakeBus) -> None:
    bus.awake.clear()
    client = Chooser(Roots.from_env(ctl.env), ctl.env, look_within=0.05)
    ctl.clients.append(client)
    assert client.way().why == "org.accelerd1 does not answer on the session bus"
    assert client.get("status")["pid"] == 4711
    bus.awake.set()
    assert hosts(daemon) == {"localhost"}
    daemon.requests.clear()


def test_a_command_that_asks_nobody_waits_for_no_bus(ctl: Ctl) -> None:
    assert ctl("config", "path", DBUS_SESSION_BUS_ADDRESS="unix:path=/nonexistent").status in (0, 2)


# --- started by the bus ---------------------------------------------------------------------------------------


@pytest.fixture
def startable(tmp_path: Path, ctl: Ctl) -> Iterator[Ctl]:
    """A bus that would start a fake accelerd."""
    with private_bus(tmp_path / "own") as bus:
        program = f"{sys.executable} -m tests.cli.fake_bus {bus.address} {ctl.socket.parent} 0"
        (tmp_path / "own/services" / f"{names.BUS_NAME}.service").write_text(
            f"[D-BUS Service]\nName={names.BUS_NAME}\nExec=/usr/bin/env PYTHONPATH={ROOT} {program}\n"
        )
        link = Link(bus.address)
        link.connect(20)
        link.call(BUS, BUS_PATH, f"{BUS}.ReloadConfig", "()", within=20)
        link.close()
        ctl.env["DBUS_SESSION_BUS_ADDRESS"] = bus.address
        yield ctl
    eventually(lambda: not started(ctl), "what the bus has started ends with it")


def started(ctl: Ctl) -> list[int]:
    """Processes of the fake accelerd."""
    runtime = str(ctl.socket.parent)
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        line = process.info["cmdline"] or []
        if "tests.cli.fake_bus" in line and runtime in line:
            found.append(process.info["pid"])
    return found


def test_work_starts_accelerd_and_a_question_does_not(startable: Ctl) -> None:
    result = startable("status")
    assert (result.status, started(startable)) == (3, [])
    assert "is not running" in result.err
    result = startable("reset", "broken")
    assert (result.status, result.err) == (0, "")
    assert startable.client().way().name == "bus"
    assert startable("status").status == 0


def test_a_chat_starts_accelerd_too(startable: Ctl) -> None:
    result = startable("chat", "embed", "hello")
    assert (result.status, "hello" in result.out) == (0, True), result.err


def test_a_bus_that_cannot_start_it(startable: Ctl, tmp_path: Path) -> None:
    (tmp_path / "own/services" / f"{names.BUS_NAME}.service").write_text(
        f"[D-BUS Service]\nName={names.BUS_NAME}\nExec=/bin/false\n"
    )
    result = startable("load", "embed")
    assert result.status == 3
    assert "is not running" in result.err
