"""accelctl doctor: the daemon, its units, where it listens, and its journal."""

from __future__ import annotations

import socket
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from accelerd import __version__
from accelerd.cli.checks import service
from accelerd.cli.checks.base import CheckContext
from accelerd.cli.connect import DaemonClient
from accelerd.cli.programs import ProgramResult

from .conftest import Ctl
from .doctor_kit import ACTIVE, MISSING, UNITS, FakePrograms, levels, machine, only
from .fake_daemon import FakeDaemon, Reply, status


@pytest.fixture
def here(ctl: Ctl, short: Path, tmp_path: Path) -> CheckContext:
    return machine(ctl, short, tmp_path)


def test_daemon_down_other_version_and_well(here: CheckContext, daemon: FakeDaemon) -> None:
    assert only(service.daemon(here)).level == "ok"
    daemon.answers["GET status"] = Reply(status(version="0.0.1"))
    here.__dict__.pop("status")
    check = only(service.daemon(here))
    assert check.level == "warn"
    assert f"0.0.1 is running, {__version__} is installed" in check.detail
    here.__dict__.pop("status")
    here.client = DaemonClient(Path("/nowhere"))
    assert only(service.daemon(here)).fix == "systemctl --user start accelerd"


def test_what_the_daemon_lacks_is_told(here: CheckContext, daemon: FakeDaemon) -> None:
    daemon.answers["GET status"] = Reply(status(degraded="no systemd user manager answers (package python3-gi)"))
    found = {check.id: check for check in service.daemon(here)}
    assert (found["daemon"].level, found["degraded"].level) == ("ok", "warn")
    assert "python3-gi" in found["degraded"].detail
    assert "packaging/install" in found["degraded"].fix


@pytest.mark.parametrize(
    ("state", "expected"), [("left", "ok"), ("raised", "ok"), ("unsuitable", "ok"), ("unable", "warn"), ("hot", "warn")]
)
def test_the_level_of_a_gpu_that_may_not_be_set(
    here: CheckContext, daemon: FakeDaemon, state: str, expected: str
) -> None:
    gpu = {"slot": "0000:c1:00.0", "name": "Radeon", "state": state, "reason": "because", "stuck": False}
    daemon.answers["GET status"] = Reply(status(performance=[gpu]))
    (found,) = service.level(here)
    assert (found.level, found.detail) == (expected, "Radeon: because")
    assert ("packaging/helper install" in found.fix) is (state == "unable")


def test_all_units_are_installed_together_by_hand(here: CheckContext) -> None:
    here.checkout_tool = lambda name: ""  # type: ignore[method-assign]  # as in an installed package
    words = service.install_command(here).split()
    assert {Path(word).name for word in words if "_units/user" in word} == {path.name for path in UNITS.iterdir()}


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (ProgramResult(0, ACTIVE, ""), {"units": "ok", "socket-activation": "ok"}),
        (ProgramResult(0, MISSING, ""), {"units": "warn"}),
        (ProgramResult(0, ACTIVE.replace("enabled", "disabled"), ""), {"units": "ok", "socket-activation": "warn"}),
        (ProgramResult(0, ACTIVE.replace("=active", "=failed"), ""), {"units": "ok", "socket-activation": "warn"}),
        (ProgramResult(0, ACTIVE.replace("=loaded", "=bad-setting"), ""), {"units": "fail"}),
        (ProgramResult(0, ACTIVE.replace("=loaded", "=masked"), ""), {"units": "fail"}),
        (ProgramResult(1, "", "Failed to connect to bus"), {"units": "warn"}),
        (ProgramResult(127, "", ""), {"units": "warn"}),
    ],
)
def test_units(here: CheckContext, outcome: ProgramResult, expected: dict[str, str]) -> None:
    here.programs = FakePrograms(systemctl=outcome)
    assert levels(service.units(here)) == expected


@pytest.mark.parametrize(
    ("states", "fix"),
    [
        ("masked inactive", "systemctl --user unmask accelerd.socket accelerd.service && "),
        ("loaded failed", "systemctl --user reset-failed accelerd.service accelerd.socket && "),
        ("loaded inactive", "systemctl --user start accelerd.socket"),
        ("loaded active", "systemctl --user start accelerd"),
        ("not-found inactive", "run accelerd in a terminal"),
    ],
)
def test_what_starts_a_daemon_that_does_not_run(here: CheckContext, states: str, fix: str) -> None:
    load, active = states.split()
    said = f"LoadState={load}\nUnitFileState=\nActiveState={active}\n"
    here.programs = FakePrograms(systemctl=ProgramResult(0, said, ""))
    (check,) = service.daemon(here)
    assert (check.level, check.fix.startswith(fix)) == ("fail", True), check.fix


def test_after_failed_starts_the_fix_is_what_systemd_accepts(here: CheckContext) -> None:
    here.programs = FakePrograms(systemctl=ProgramResult(0, ACTIVE.replace("=active", "=failed"), ""))
    (check,) = [one for one in service.units(here) if one.id == "socket-activation"]
    assert "reset-failed" in check.fix


def test_linger(here: CheckContext) -> None:
    for outcome, level in (
        (ProgramResult(0, "yes\n", ""), "ok"),
        (ProgramResult(0, "no\n", ""), "warn"),
        (ProgramResult(1, "", "no user"), "warn"),
    ):
        here.programs = FakePrograms(loginctl=outcome)
        assert only(service.linger(here)).level == level
    here.programs = FakePrograms()
    assert "loginctl is not installed" in only(service.linger(here)).detail


def listen(here: CheckContext, *ports: int) -> None:
    """Somebody listens on these ports; one connection is established, which is no listening."""
    rest = "00000000:00000000 00:00000000 00000000 1000 0"
    rows = [f"   {n}: 0100007F:{port:04X} 00000000:0000 0A {rest} {n}" for n, port in enumerate(ports)]
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    text = head + "\n".join([*rows, f"   9: 0100007F:0FA0 0100007F:D431 01 {rest} 9"]) + "\n"
    (here.roots.proc / "net/tcp").write_text(text)


def test_ports_free_taken_and_ours(here: CheckContext, daemon: FakeDaemon, ctl: Ctl) -> None:
    elsewhere = DaemonClient(Path("/nowhere"))
    here.client, running = elsewhere, here.client
    here.programs = FakePrograms()
    listen(here)
    assert levels(service.ports(here)) == {"port": "ok"}
    listen(here, 4000)
    taken = list(service.ports(here))
    assert [(check.level, check.detail) for check in taken] == [
        ("fail", "127.0.0.1:4000 is in use by a program of another user"),
        ("ok", "[::1]:4000 is free"),
    ]
    assert "ss -ltnp 'sport = :4000'" in taken[0].fix
    here.programs = FakePrograms(systemctl=ProgramResult(0, ACTIVE, ""))
    assert [check.detail for check in service.ports(here)] == [
        "127.0.0.1:4000 is held for accelerd by systemd",
        "[::1]:4000 is free",
    ]
    here.__dict__.pop("status")
    here.client = running
    assert {check.detail.partition(" is ")[2] for check in service.ports(here)} == {"served by accelerd"}


def test_ports_that_systemd_does_not_hold_until_a_restart(here: CheckContext) -> None:
    class Stopped(FakePrograms):
        def run(self, argv: Sequence[str], timeout: float = 10.0) -> ProgramResult:
            state = "inactive" if argv[-1] == "accelerd-http.socket" else "active"
            return ProgramResult(0, ACTIVE.replace("ActiveState=active", f"ActiveState={state}"), "")

    here.programs = Stopped()
    found = {check.id: check for check in service.units(here)}
    assert found["units"].level == "ok"
    assert found["socket-activation"].level == "warn"
    assert "accelerd-http.socket is inactive: until a restart" in found["socket-activation"].detail


def test_a_daemon_that_listens_elsewhere_than_configured(here: CheckContext) -> None:
    here.__dict__["status"] = {"listen": ["127.0.0.1:4001", "127.0.0.1:4000"]}
    here.roots.config_file.parent.mkdir(parents=True, exist_ok=True)
    here.roots.config_file.write_text('[server]\nlisten = ["127.0.0.1:4000", "[::1]:4000", "127.0.0.1:4002"]\n')
    lacking = {"address": "[::1]:4000", "problem": "cannot listen on [::1]:4000: nginx (pid 7) uses the port"}
    here.__dict__["status"]["listeners"] = [lacking, {"address": "127.0.0.1:4000", "problem": None}]
    assert [(check.level, check.detail, check.fix) for check in service.ports(here)] == [
        ("ok", "127.0.0.1:4000 is served by accelerd", ""),
        ("fail", f"{lacking['problem']}; accelerd tries again", "ss -ltnp 'sport = :4000'"),
        ("fail", "127.0.0.1:4002 is configured, but accelerd does not listen there", "accelctl reload"),
        ("warn", "accelerd listens on 127.0.0.1:4001, which server.listen does not name", "accelctl reload"),
    ]


def test_control_socket(here: CheckContext, short: Path) -> None:
    path = short / "s"
    assert list(service.control_socket(here)) == []
    path.touch()
    assert "is not a socket" in only(service.control_socket(here)).detail
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    path.chmod(0o666)
    check = only(service.control_socket(here))
    assert (check.level, check.fix) == ("warn", f"chmod 600 {path}")
    path.chmod(0o600)
    assert only(service.control_socket(here)).level == "ok"
    here.uid += 1
    assert "belongs to user" in only(service.control_socket(here)).detail
    assert stat.S_ISSOCK(path.stat().st_mode)


def test_journal(here: CheckContext) -> None:
    assert only(service.journal(here)).level == "ok"
    here.programs = FakePrograms(journalctl=ProgramResult(1, "", "Hint: …\nNo journal files were opened.\n"))
    check = only(service.journal(here))
    assert check.level == "warn"
    assert "No journal files were opened." in check.detail
