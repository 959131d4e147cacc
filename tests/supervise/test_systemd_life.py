"""Models in units of a real systemd --user: nothing is left after any end."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.supervise.units import Daemon, Units, alive
from tests.system.systemd_user import wait_until

GIB = 1 << 30


@pytest.fixture
def daemon(units: Units) -> Daemon:
    return units.daemon()


def test_ready_probed_and_stopped(units: Units, daemon: Daemon) -> None:
    assert daemon.units is True
    pid = daemon.start(1, units.name())
    seen = units.show(units.unit())
    assert (seen["ActiveState"], seen["MainPID"], seen["Slice"]) == ("active", str(pid), "accelerd.slice")
    assert seen["ControlGroup"].endswith(f"/accelerd.slice/{units.unit()}")
    assert f"/{units.unit()}" in Path(f"/proc/{pid}/cgroup").read_text()
    shown = units.manager.systemctl("status", "accelerd-*").stdout
    assert units.unit() in shown
    assert f"model {units.name()}" in shown
    daemon.ask("probe", n=1)
    assert daemon.wait("probed", n=1)["ok"] is True
    assert sorted(name.rpartition(".")[2] for name in units.files()) == ["json", "out", "sock"]
    gone = daemon.stopped(1)
    assert (gone["cause"], gone["status"]) == ("stopped", 0)
    assert not alive(pid)
    units.assert_nothing_left()
    daemon.end()
    assert units.errors() == ""


def test_environment_is_the_planned_one_and_no_secret_shows(units: Units, daemon: Daemon) -> None:
    values = {"QUOTED": 'a "b" $HOME `c` \\n %h', "LINES": "one\ntwo ", "EMPTY": "", "TOKEN": "s3cret-t0ken"}
    pid = daemon.start(1, units.name(), env=values)
    environ = Path(f"/proc/{pid}/environ").read_bytes().decode()
    given = dict(entry.split("=", 1) for entry in environ.split("\0") if entry)
    assert {given.pop(f"ACCELERD_{tag}") for tag in ("INSTANCE", "OWNER")} >= {str(units.runtime)}
    planned = daemon.ask("environment")
    assert given == planned
    assert not units.files("*.env")
    shown = units.manager.systemctl("show", units.unit()).stdout + units.manager.systemctl("cat", units.unit()).stdout
    commands = b""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):  # another program's, which has ended
            commands += path.read_bytes()
    for secret in (planned["LLAMA_API_KEY"], planned["TOKEN"]):
        assert secret not in shown
        assert secret.encode() not in commands
    for name in units.files():
        assert (units.runtime / "instances" / name).stat().st_mode & 0o077 == 0 or name.endswith(".sock")


def test_limits_are_the_unit_s(units: Units, daemon: Daemon) -> None:
    """That they are kept is the kernel's business, where it has the controllers."""
    pid = daemon.start(
        1, units.name(),
        memory_max=8 * GIB, memory_high=7 * GIB, cpu_weight=50, nice=19, io_class="idle", oom_score_adjust=300,
        tasks_max=200, stop_timeout=3.0,
    )  # fmt: skip
    seen = units.show(units.unit())
    wanted = {
        "MemoryMax": str(8 * GIB),
        "MemoryHigh": str(7 * GIB),
        "CPUWeight": "50",
        "Nice": "19",
        "IOSchedulingClass": "3",
        "OOMScoreAdjust": "300",
        "OOMPolicy": "kill",
        "TasksMax": "200",
        "LimitCORE": "0",
        "NoNewPrivileges": "yes",
        "CollectMode": "inactive-or-failed",
        "TimeoutStopUSec": "8s",
        "Restart": "no",
    }
    assert {key: seen.get(key) for key in wanted} == wanted
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "300"
    assert os.getpriority(os.PRIO_PROCESS, pid) == 19  # the tests themselves may be nice
    assert "Max core file size        0                    0" in Path(f"/proc/{pid}/limits").read_text()


def test_sigterm_ignored(units: Units, daemon: Daemon) -> None:
    pid = daemon.start(1, units.name(), "ignore-term", stop_timeout=0.3)
    daemon.ask("stop", n=1)
    daemon.wait("killing", n=1)
    gone = daemon.wait("gone", n=1)
    assert (gone["cause"], gone["status"]) == ("stopped", -signal.SIGKILL)
    assert not alive(pid)
    units.assert_nothing_left()


def test_killed_by_somebody(units: Units, daemon: Daemon) -> None:
    pid = daemon.start(1, units.name())
    os.kill(pid, signal.SIGKILL)
    gone = daemon.wait("gone", n=1)
    assert (gone["cause"], gone["status"]) == ("signaled", -signal.SIGKILL)
    units.assert_nothing_left()


@pytest.mark.parametrize("status", [0, 7, 203])
def test_exits_before_listening(units: Units, daemon: Daemon, status: int) -> None:
    daemon.ask("start", n=1, name=units.name(), mode=f"exit:{status}")
    gone = daemon.wait("gone", n=1)
    assert (gone["cause"], gone["status"]) == ("exited", status)
    assert gone["tail"][-1] == f"E main: exiting due to mode exit:{status}"
    units.assert_nothing_left()


def test_exits_at_once(units: Units, daemon: Daemon) -> None:
    for n in range(1, 6):
        daemon.ask("start", n=n, name=units.name(), argv=["/bin/sh", "-c", "echo bye; exit 3"])
        gone = daemon.wait("gone", n=n)
        assert (gone["cause"], gone["status"], gone["tail"]) == ("exited", 3, ["bye"])
    units.assert_nothing_left()


@pytest.mark.parametrize("text", [None, "#!/no/such/interpreter\n", "no program\n"])
def test_program_that_cannot_be_executed(units: Units, daemon: Daemon, text: str | None) -> None:
    program = units.manager.home / "llama-server"
    if text is not None:
        units.manager.script(program, text)
    daemon.ask("start", n=1, name=units.name(), argv=[str(program)])
    gone = daemon.wait("gone", n=1)
    assert gone["cause"] == "no-program"
    assert str(program) in gone["message"]
    units.assert_nothing_left()


def test_what_cleans_its_environment_is_in_the_control_group_still(units: Units, daemon: Daemon) -> None:
    note = units.manager.home / "stranger"
    script = f'setsid env -i {sys.executable} -c "import time; time.sleep(60)" & echo $! >{note}; wait'
    daemon.ask("start", n=1, name=units.name(), argv=["/bin/sh", "-c", script])
    assert wait_until(lambda: note.exists() and note.read_text().strip() != "")
    stranger = int(note.read_text())
    assert wait_until(lambda: alive(stranger) and b"ACCELERD" not in Path(f"/proc/{stranger}/environ").read_bytes())
    os.kill(daemon.pid(1), signal.SIGKILL)
    daemon.wait("gone", n=1)
    assert not alive(stranger)
    units.assert_nothing_left()


def test_wrapper_and_grandchild_in_a_session_of_its_own(units: Units, daemon: Daemon) -> None:
    daemon.start(1, units.name(), "fork-wrapper,setsid-grandchild")
    assert len(units.pids()) == 3
    assert daemon.stopped(1)["cause"] == "stopped"
    units.assert_nothing_left()


def test_dollar_signs_in_arguments_are_only_dollar_signs(units: Units, daemon: Daemon) -> None:
    argv = ["/bin/echo", "$LLAMA_API_KEY", "${LLAMA_API_KEY}", "%n", "a b", ""]
    daemon.ask("start", n=1, name=units.name(), argv=argv)
    assert daemon.wait("gone", n=1)["tail"] == ["$LLAMA_API_KEY ${LLAMA_API_KEY} %n a b "]


def test_name_that_is_taken_by_somebody_else(units: Units, daemon: Daemon) -> None:
    units.manager.run(["systemd-run", "--user", f"--unit={units.unit()}", "sleep", "60"])
    pid = daemon.start(1, units.name())
    assert int(units.show(units.unit())["MainPID"]) not in (0, pid)
    assert len(units.loaded()) == 2
    daemon.stopped(1)
    assert [line.split()[0] for line in units.loaded()] == [units.unit()]
    assert units.show(units.unit())["ActiveState"] == "active"
    units.manager.systemctl("stop", units.unit())


def test_name_of_a_unit_that_was_left_failed(units: Units, daemon: Daemon) -> None:
    units.manager.run(["systemd-run", "--user", f"--unit={units.unit()}", "--wait", "false"], check=False)
    assert units.show(units.unit())["ActiveState"] == "failed"
    pid = daemon.start(1, units.name())
    assert units.show(units.unit())["MainPID"] == str(pid)
    daemon.stopped(1)
    units.assert_nothing_left()


def test_name_that_needs_escaping(units: Units, daemon: Daemon) -> None:
    name = units.name("org/qwen3:8b_Q4.K")
    daemon.start(1, name)
    (listed,) = units.loaded()
    assert listed.split()[0].startswith(f"accelerd-{name}-".replace("/", "-"))
    assert listed.split()[2] == "active"
    daemon.stopped(1)
    units.assert_nothing_left()


def test_stopped_by_hand_is_an_end_like_any_other(units: Units, daemon: Daemon) -> None:
    daemon.start(1, units.name())
    units.manager.systemctl("stop", units.unit())
    gone = daemon.wait("gone", n=1)
    assert (gone["cause"], gone["status"]) == ("exited", 0)
    units.assert_nothing_left()


def test_output_says_which_unit_it_is_from(units: Units, daemon: Daemon) -> None:
    daemon.ask("start", n=1, name=units.name())
    line = daemon.wait("line", line="I main: model loaded")
    assert line["unit"] == units.unit()


def test_a_flood_does_not_hold_up_the_end(units: Units, daemon: Daemon) -> None:
    daemon.start(1, units.name(), "flood")
    assert daemon.stopped(1)["cause"] == "stopped"
    units.assert_nothing_left()


def test_what_shall_not_survive_is_a_child_where_it_has_no_limits(units: Units, daemon: Daemon) -> None:
    daemon.start(1, units.name("plain"), survive=False)
    assert units.loaded() == []
    daemon.start(2, units.name("limited"), survive=False, memory_max=8 * GIB)
    assert len(units.loaded()) == len(units.files("*.json")) == 1
    assert daemon.ask("close", keep=True) is True
    units.assert_nothing_left()


def test_bus_that_breaks_is_connected_again(units: Units, daemon: Daemon) -> None:
    """Not by killing dbus-daemon: systemd 252 itself hangs then, now and again, when its own bus is to be started."""
    pid = daemon.start(1, units.name())
    daemon.ask("break_bus")
    assert alive(pid)
    gone = daemon.stopped(1)
    assert gone["cause"] == "stopped"
    assert not alive(pid)
    daemon.start(2, units.name())
    assert daemon.stopped(2)["status"] == 0
    units.assert_nothing_left()


def test_manager_that_goes_away_takes_the_models_with_it(units: Units, daemon: Daemon) -> None:
    pid = daemon.start(1, units.name())
    units.manager.systemctl("exit")
    assert daemon.wait("gone", n=1)["cause"] in ("exited", "signaled")
    assert not alive(pid)
    daemon.ask("start", n=2, name=units.name())
    gone = daemon.wait("gone", n=2)
    assert gone["cause"] == "spawn-failed"
    assert "cannot start" in gone["message"]
    assert units.files() == []
