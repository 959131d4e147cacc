"""Models that outlive the daemon, with a real systemd --user: the next daemon takes them over."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from tests.supervise.units import Units, alive, wait_gone
from tests.system.systemd_user import wait_until


@pytest.mark.parametrize("end", ["killed", "restarted"])
def test_the_next_daemon_goes_on_with_the_same_process(units: Units, end: str) -> None:
    first = units.daemon()
    pid = first.start(1, units.name(), "ignore-term")
    units.noted()
    secret = json.loads((units.runtime / "instances" / units.files("*.json")[0]).read_text())["record"]["secret"]
    if end == "killed":
        first.kill()
    else:
        assert first.ask("close", keep=True) is True
        first.end()
    assert alive(pid)
    assert units.recorded("term") == []
    assert units.show(units.unit())["ActiveState"] == "active"

    second = units.daemon()
    adopted = second.ask("adopt", n=7, name=units.name(), mode="ignore-term")
    assert adopted == {"found": {units.name(): {"fits": True, "ready": True}}, "ended": 0}
    assert second.wait("ready", n=7)["secret"] == secret
    facts = second.ask("facts", n=7)
    assert facts["pid"] == pid
    assert 0.1 < facts["age"] < 60
    second.ask("probe", n=7)
    assert second.wait("probed", n=7)["ok"] is True
    assert second.ask("sweep") == 0  # an adopted one is no leftover
    assert len(units.recorded("spawn")) == 1
    second.ask("stop", n=7)
    assert second.wait("gone", n=7)["status"] == -signal.SIGKILL  # the end is known in full
    units.assert_nothing_left()
    second.end()
    assert units.errors() == ""


def test_an_environment_that_a_killed_daemon_has_left_is_taken_back(units: Units) -> None:
    first = units.daemon()
    first.start(1, units.name())
    first.kill()
    (record,) = units.files("*.json")
    left = (units.runtime / "instances" / record).with_suffix(".env")
    left.write_text("LLAMA_API_KEY=secret\n")
    second = units.daemon()
    second.ask("adopt", n=7, name=units.name())
    second.wait("ready", n=7)
    assert not left.exists()
    second.ask("stop", n=7)
    second.wait("gone", n=7)
    units.assert_nothing_left()


def test_a_daemon_reload_in_between_changes_nothing(units: Units) -> None:
    """Every upgrade of a package makes one; systemd then reads what it has written down of a transient unit."""
    first = units.daemon()
    pid = first.start(1, units.name())
    odd = ["/bin/sh", "-c", "exec sleep 60", "$HOME", "${HOME}", "$$", 'a b %h "q" ;']
    first.ask("start", n=2, name=units.name("odd"), argv=odd)
    assert wait_until(lambda: first.pid(2) is not None)
    units.manager.systemctl("daemon-reload")
    for unit in (units.unit(), units.unit("odd")):
        assert units.show(unit)["LoadState"] == "loaded"
    first.kill()
    second = units.daemon()
    assert second.ask("adopt", n=7, name=units.name())["ended"] == 1  # the odd one is nobody's
    second.wait("ready", n=7)
    assert second.pid(7) == pid
    units.manager.systemctl("daemon-reload")
    second.ask("stop", n=7)
    assert second.wait("gone", n=7)["cause"] == "stopped"
    units.assert_nothing_left()


def test_several_generations_of_daemons(units: Units) -> None:
    daemon = units.daemon()
    pid = daemon.start(1, units.name())
    for n in range(2, 5):
        daemon.kill()
        daemon = units.daemon()
        daemon.ask("adopt", n=n, name=units.name())
        daemon.wait("ready", n=n)
        assert daemon.pid(n) == pid
    os.kill(pid, signal.SIGKILL)
    gone = daemon.wait("gone", n=4)
    assert (gone["cause"], gone["status"]) == ("signaled", -signal.SIGKILL)
    units.assert_nothing_left()


def test_output_of_the_time_without_a_daemon_is_not_lost(units: Units) -> None:
    first = units.daemon()
    first.ask("start", n=1, name=units.name(), mode="slow-load:1.5,chatter:50")
    first.wait("line", line="I main: fake server")
    first.kill()
    assert wait_until(lambda: bool(units.recorded("ready")))
    second = units.daemon()
    assert second.ask("adopt", n=1, name=units.name(), mode="slow-load:1.5,chatter:50")["found"] == {
        units.name(): {"fits": True, "ready": False}
    }
    second.wait("ready", n=1)
    lines = second.ask("output", name=units.name())
    assert len([line for line in lines if line.startswith("I load: ")]) > 5
    assert lines[-1] == "I main: model loaded"


def test_output_of_before_a_restart_is_not_lost(units: Units) -> None:
    first = units.daemon()
    first.start(1, units.name(), "chatter:50")
    before = first.ask("output", name=units.name())
    assert "I main: model loaded" in before
    assert first.ask("close", keep=True) is True
    first.end()
    [kept] = units.files("*.log")
    assert (units.runtime / "instances" / kept).stat().st_mode & 0o777 == 0o600
    second = units.daemon()
    second.ask("adopt", n=1, name=units.name(), mode="chatter:50")
    assert second.ask("output", name=units.name())[: len(before)] == before
    assert units.files("*.log") == []
    second.ask("stop", n=1)
    second.wait("gone", n=1)
    units.assert_nothing_left()


def test_flood_without_a_reader_does_not_kill(units: Units) -> None:
    """It waits when the pipe is full, and goes on when the next daemon reads."""
    first = units.daemon()
    pid = first.start(1, units.name(), "flood")
    first.kill()
    second = units.daemon()
    second.ask("adopt", n=1, name=units.name(), mode="flood")
    second.wait("ready", n=1)
    assert second.pid(1) == pid
    assert second.ask("output", name=units.name()) != []
    assert second.stopped(1)["cause"] == "stopped"
    units.assert_nothing_left()


def test_while_it_loads(units: Units) -> None:
    first = units.daemon()
    first.ask("start", n=1, name=units.name(), mode="slow-load:2")
    first.wait("line", line="I main: fake server")
    pid = first.pid(1)
    first.kill()
    second = units.daemon()
    second.ask("adopt", n=1, name=units.name(), mode="slow-load:2")
    second.wait("ready", n=1)
    assert second.pid(1) == pid
    second.stopped(1)
    units.assert_nothing_left()


def test_what_is_not_wanted_any_more_is_ended(units: Units) -> None:
    first = units.daemon()
    pids = [first.start(1, units.name("a")), first.start(2, units.name("b"), "ignore-term,setsid-grandchild")]
    first.kill()
    second = units.daemon()
    adopted = second.ask("adopt", n=1, name=units.name("a"))
    assert adopted["ended"] == 2
    assert set(adopted["found"]) == {units.name("a"), units.name("b")}
    second.wait("ready", n=1)
    assert [alive(pid) for pid in pids] == [True, False]
    assert units.recorded("term")
    assert len(units.files()) == 3
    second.stopped(1)
    units.assert_nothing_left()


def test_other_settings_do_not_fit(units: Units) -> None:
    first = units.daemon()
    first.start(1, units.name(), env={"TOKEN": "old"})
    first.kill()
    second = units.daemon()
    adopted = second.ask("adopt", n=1, name=units.name(), env={"TOKEN": "new"})
    assert adopted["found"][units.name()]["fits"] is False
    second.wait("ready", n=1)


@pytest.mark.parametrize("dies", ["alone", "with the daemon"])
def test_it_died_while_no_daemon_ran(units: Units, dies: str) -> None:
    first = units.daemon()
    pid = first.start(1, units.name())
    if dies == "alone":
        first.kill()
        os.kill(pid, signal.SIGKILL)
    else:
        os.kill(pid, signal.SIGKILL)
        first.kill()
    wait_gone(pid)
    second = units.daemon()
    assert second.ask("adopt", n=1, name=units.name()) == {"found": {}, "ended": 0}
    units.assert_nothing_left()


def test_survivor_that_answers_no_more_is_ended(units: Units) -> None:
    first = units.daemon()
    pid = first.start(1, units.name(), stop_timeout=0.3)
    units.noted()
    first.kill()
    os.kill(pid, signal.SIGSTOP)
    second = units.daemon()
    second.ask("adopt", n=1, name=units.name(), stop_timeout=0.3)
    gone = second.wait("gone", n=1)
    assert gone["cause"] == "load-timeout"
    assert not alive(pid)
    units.assert_nothing_left()


def test_daemon_killed_while_it_stops_a_model(units: Units) -> None:
    first = units.daemon()
    pid = first.start(1, units.name(), "ignore-term", stop_timeout=60)
    first.ask("stop", n=1)
    assert wait_until(lambda: bool(units.recorded("term")))
    record = units.runtime / "instances" / units.files("*.json")[0]
    assert wait_until(lambda: json.loads(record.read_text())["phase"] == "ending")
    first.kill()
    second = units.daemon()
    assert second.ask("adopt", n=1, name=units.name(), mode="ignore-term") == {"found": {}, "ended": 1}
    assert not alive(pid)
    units.assert_nothing_left()


def test_taken_over_under_the_second_name(units: Units) -> None:
    units.manager.run(["systemd-run", "--user", f"--unit={units.unit()}", "sleep", "60"])
    first = units.daemon()
    pid = first.start(1, units.name())
    first.kill()
    second = units.daemon()
    second.ask("adopt", n=1, name=units.name())
    second.wait("ready", n=1)
    assert second.pid(1) == pid
    second.stopped(1)
    units.manager.systemctl("stop", units.unit())
    units.assert_nothing_left()


def test_fifo_that_was_removed_is_found_by_its_descriptor(units: Units) -> None:
    first = units.daemon()
    first.ask("start", n=1, name=units.name(), mode="slow-load:3,chatter:50")
    first.wait("line", line="I main: fake server")
    first.kill()
    (units.runtime / "instances" / units.files("*.out")[0]).unlink()
    second = units.daemon()
    second.ask("adopt", n=1, name=units.name(), mode="slow-load:3,chatter:50")
    assert second.wait("line", model=units.name())["unit"] == units.unit()
    second.wait("ready", n=1)


def test_killed_between_the_record_and_the_process(units: Units) -> None:
    first = units.daemon("--die-before-spawn")
    with pytest.raises((AssertionError, BrokenPipeError)):
        first.start(1, units.name())
    assert len(units.files("*.json")) == 1
    assert units.pids() == []
    second = units.daemon()
    assert second.ask("adopt", n=1, name=units.name()) == {"found": {}, "ended": 0}
    units.assert_nothing_left()


def edit_nothing(record: dict[str, Any]) -> str:
    return json.dumps(record)[:40]


def edit_version(record: dict[str, Any]) -> str:
    return json.dumps(record | {"version": 99, "phase": {"new": "shape"}})


def edit_mark(record: dict[str, Any]) -> str:
    record["record"]["tag"]["instance"] = "1-0000000000000000"
    return json.dumps(record)


@pytest.mark.parametrize("edit", [edit_nothing, edit_version, edit_mark], ids=["torn", "newer", "another's"])
def test_record_that_cannot_be_used(units: Units, edit: Any) -> None:
    first = units.daemon()
    pid = first.start(1, units.name())
    first.kill()
    record = units.runtime / "instances" / units.files("*.json")[0]
    record.write_text(edit(json.loads(record.read_text())))
    second = units.daemon()
    assert second.ask("adopt", n=1, name=units.name()) == {"found": {}, "ended": 1}
    assert not alive(pid)
    assert units.files() == [f"{record.name}.corrupt-1"]
    assert "cannot use the record" in units.errors()
    assert wait_until(lambda: units.loaded() == [])
