"""The units where packaging/install writes them: they can be masked, and what a user adds to them stays."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from accelerd.base import names
from tests.daemon.kit import Site
from tests.daemon.service import PROGRAMS, SERVICE
from tests.ports import free_port
from tests.system.systemd_user import HTTP_SOCKET, REPO, SOCKET, UserManager

GET = ["busctl", "--user", "get-property", names.BUS_NAME, names.BUS_PATH, names.BUS_MANAGER, "Version"]
UNITS = (SOCKET, HTTP_SOCKET, SERVICE)
OLD = ".config/systemd/user"  # where 0.6 wrote them
FILE = "org.accelerd1.service"


class Installed:
    """The installer's units, with programs of this checkout in the place of the installed ones."""

    def __init__(self, manager: UserManager) -> None:
        self.manager = manager
        self.port = free_port()
        for name, arguments in PROGRAMS.items():
            environment = " ".join(f"{key}='{value}'" for key, value in manager.environment().items())
            script = f'#!/bin/sh\nexec env {environment} {sys.executable} {arguments} "$@"\n'
            manager.script(manager.home / ".local/share/accelerd/venv/bin" / name, script)
        listen = f'[server]\nlisten = ["127.0.0.1:{self.port}"]\n'
        self.site = Site(manager.directory(manager.base / "site"))
        self.site.gguf.chmod(0o644)
        manager.write(manager.home / ".config/accelerd/accelerd.toml", listen + self.site.model("m"))
        program = manager.home / ".local/share/accelerd/venv/bin/accelerd"
        text = (REPO / "packaging/dbus" / FILE).read_text().replace("/usr/bin/accelerd", str(program))
        manager.write(manager.home / ".local/share/dbus-1/services" / FILE, text)
        call = ["busctl", "--user", "call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus"]
        manager.run([*call, "ReloadConfig"])

    def packaging(self, script: str, shell: str) -> str:
        """What functions of packaging/install or packaging/uninstall say."""
        return self.manager.run(["bash", "-c", f". {REPO}/packaging/{script}; {shell}"], timeout=60).stderr

    def install(self) -> None:
        self.packaging("install", "install_units; update_socket; start_service")

    def accelctl(self, *arguments: str) -> str:
        return self.manager.run([self.manager.home / ".local/share/accelerd/venv/bin/accelctl", *arguments]).stdout

    def state(self, unit: str = SERVICE) -> str:
        return self.manager.properties(unit)["ActiveState"]

    def refused(self, *command: str) -> str:
        """What a command says that must fail."""
        done = self.manager.run(command, check=False)
        assert done.returncode != 0, done.stdout
        return done.stderr


@pytest.fixture
def installed(user_manager: UserManager) -> Iterator[Installed]:
    made = Installed(user_manager)
    try:
        yield made
    finally:
        user_manager.systemctl("unmask", *UNITS, check=False)
        user_manager.systemctl("unmask", "--runtime", *UNITS, check=False)
        made.packaging("uninstall", "remove_service")


@pytest.mark.parametrize("how", [["mask"], ["mask", "--runtime"]], ids=["always", "until the next boot"])
def test_what_is_masked_is_started_by_nobody(installed: Installed, how: list[str]) -> None:
    manager = installed.manager
    installed.install()
    assert installed.state() == "active"
    manager.systemctl("stop", SOCKET, SERVICE)
    manager.systemctl(*how, SOCKET, SERVICE)
    assert "masked" in installed.refused("systemctl", "--user", "start", SERVICE)
    assert "masked" in installed.refused(*GET)
    accelctl = str(manager.home / ".local/share/accelerd/venv/bin/accelctl")
    assert "systemctl --user unmask accelerd.socket accelerd.service" in installed.refused(accelctl, "status")
    said = installed.packaging("install", "install_units; update_socket; start; next_steps")
    assert "accelerd.service is masked: it is not started" in said
    assert (installed.state(), installed.state(SOCKET), installed.state(HTTP_SOCKET)) == ("inactive",) * 3
    manager.systemctl("un" + how[0], *how[1:], SOCKET, SERVICE)
    assert manager.run(GET, timeout=60).stdout.startswith("s ")
    assert installed.state() == "active"


def test_a_bus_that_knows_no_systemd_does_not_start_what_is_masked_either(installed: Installed) -> None:
    manager = installed.manager
    installed.install()
    manager.systemctl("stop", SOCKET, SERVICE)
    manager.systemctl("mask", SOCKET, SERVICE)
    with manager.popen(["dbus-daemon", "--session", "--nofork", "--print-address"], stdout=-1) as bus:
        assert bus.stdout is not None
        there = {"DBUS_SESSION_BUS_ADDRESS": bus.stdout.readline().strip()}
        try:
            refused = manager.run(GET, check=False, env=there)
            assert refused.returncode != 0
            assert not (manager.runtime_dir / "accelerd/accelerd.sock").exists()
        finally:
            bus.terminate()


def test_units_of_an_earlier_version_move_and_stay_enabled(installed: Installed) -> None:
    manager = installed.manager
    installed.packaging("install", "UNITS=$OLD_UNITS OLD_UNITS=/nonexistent; install_units; start_service")
    assert (manager.home / OLD / SERVICE).exists()
    pid = manager.properties(SERVICE)["MainPID"]
    manager.write(manager.home / OLD / f"{SERVICE}.d/own.conf", "[Service]\nEnvironment=OWN=1\n")
    installed.install()
    seen = manager.properties(SERVICE)
    assert not [unit for unit in UNITS if (manager.home / OLD / unit).exists()]
    assert Path(seen["FragmentPath"]) == manager.home / ".local/share/systemd/user" / SERVICE
    assert (seen["UnitFileState"], seen["Environment"], seen["ActiveState"]) == ("enabled", "OWN=1", "active")
    assert seen["MainPID"] != pid
    for unit in (SERVICE, SOCKET):
        assert manager.systemctl("is-enabled", unit).stdout == "enabled\n"


def test_an_upgrade_that_changes_the_sockets_keeps_the_models(installed: Installed) -> None:
    manager = installed.manager
    installed.install()
    installed.accelctl("load", "m")
    before = json.loads(installed.accelctl("status", "--json"))
    text = f"{mark(installed)}\n[Socket]\nListenStream=127.0.0.1:{free_port()}\nService={SERVICE}\n"
    manager.write(manager.home / ".local/share/systemd/user" / HTTP_SOCKET, text)
    installed.install()
    after = json.loads(installed.accelctl("status", "--json"))
    assert after["pid"] != before["pid"]
    assert after["models"][0]["pid"] == before["models"][0]["pid"]
    assert (installed.state(SOCKET), installed.state(HTTP_SOCKET)) == ("active", "active")
    assert f"127.0.0.1:{installed.port}" in manager.properties(HTTP_SOCKET)["Listen"]


def mark(installed: Installed) -> str:
    """The first line of what the installer writes."""
    return installed.manager.run(["bash", "-c", f'. {REPO}/packaging/install; echo "$UNIT_MARK"']).stdout.strip()


def test_uninstall_keeps_what_the_user_added(installed: Installed) -> None:
    manager = installed.manager
    installed.install()
    own = manager.write(manager.home / OLD / f"{SERVICE}.d/own.conf", "[Service]\nEnvironment=OWN=1\n")
    installed.packaging("uninstall", "remove_service")
    assert own.exists()
    left = manager.home / ".local/share/systemd/user"
    assert not left.exists() or not [path for path in left.rglob("*") if path.is_file()]
    assert manager.properties(SERVICE)["LoadState"] == "not-found"
