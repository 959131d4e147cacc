"""A whole daemon on a desktop: the machine sleeps, runs on battery, and a person is told what went wrong.

logind, UPower, power-profiles-daemon and the notification service are stand-ins on a bus of the test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.kit import QUICK, Site, rest_of, side_by_side, sse, tokens
from tests.daemon.test_pressure import MODULE, Machine
from tests.harness import Daemon, DaemonFactory, eventually, streaming
from tests.system.fake_services import Bus, Player, private_bus

GIVE_UP = '[memory]\nyield_on = ["sleep"]\n'


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    with private_bus(tmp_path / "bus") as made:
        yield made


class Desk:
    """Daemons on a machine with this bus, and without GPUs."""

    def __init__(self, daemons: DaemonFactory, machine: Machine, bus: Bus) -> None:
        self._daemons = daemons
        self.bus = bus
        self.env = {
            "TEST_PROC": str(machine.proc),
            "DBUS_SYSTEM_BUS_ADDRESS": bus.address,
            "DBUS_SESSION_BUS_ADDRESS": bus.address,
        }

    def start(self, toml: str) -> Daemon:
        return self._daemons.start(QUICK + toml, env=self.env, module=MODULE)


@pytest.fixture
def desk(daemons: DaemonFactory, bus: Bus, tmp_path: Path) -> Desk:
    return Desk(daemons, Machine(tmp_path / "machine"), bus)


def desktop(daemon: Daemon) -> Any:
    return daemon.status()["desktop"]


def held(daemon: Daemon) -> None:
    eventually(lambda: desktop(daemon)["sleep"]["held"], "the daemon holds sleep up")


def slept(logind: Player, *how: str) -> None:
    eventually(lambda: logind.ask("slept") == [*how], f"asleep: {how}")


def test_before_a_sleep_requests_end_and_memory_is_given_back(desk: Desk, site: Site) -> None:
    logind = desk.bus.player("logind", delay=20)
    env = {"FAKE_TOKENS": "20", "FAKE_DELAY_MS": "50"}
    daemon = desk.start(GIVE_UP + site.model("a", env=env, memory="1GiB", preload=True))
    daemon.wait_state("a", "ready")
    held(daemon)
    with side_by_side() as do, streaming(daemon, "a") as response:
        assert response.status == 200
        logind.ask("prepare")
        eventually(lambda: desktop(daemon)["sleep"]["asleep"], "the daemon has heard of it")
        late = do(daemon.chat, "a")
        text, complete = rest_of(response)
        assert complete
        assert len(tokens(sse(text))) == 20, "the request that ran has ended by itself"
        slept(logind, "let")
        assert daemon.state("a") == "stopped", "its memory was back before the machine slept"
        assert daemon.status()["yielded"]["why"] == "the machine is about to be suspended"
        assert site.spawns("a") == 1, "nothing is started for the one that waits"
        assert not late.done()
        logind.ask("wake")
        assert late.result(20).status == 200, "it was served after the sleep"
    assert site.spawns("a") == 2
    assert daemon.status()["yielded"] is None
    held(daemon)


def test_without_yield_on_sleep_models_stay_and_only_requests_end(desk: Desk, site: Site) -> None:
    logind = desk.bus.player("logind", delay=20)
    daemon = desk.start(site.model("a", env={"FAKE_TOKENS": "10", "FAKE_DELAY_MS": "50"}, memory="1GiB", preload=True))
    daemon.wait_state("a", "ready")
    held(daemon)
    with streaming(daemon, "a") as response:
        logind.ask("prepare")
        assert rest_of(response)[1]
    slept(logind, "let")
    assert daemon.state("a") == "ready"
    logind.ask("wake")
    assert daemon.chat("a").status == 200
    assert site.spawns("a") == 1


def test_a_request_without_an_end_is_cut_only_for_the_memory(desk: Desk, site: Site) -> None:
    """It goes on after the sleep where its model may stay; logind waits no longer than it says."""
    logind = desk.bus.player("logind", delay=1)
    endless = {"FAKE_TOKENS": "100000", "FAKE_DELAY_MS": "20"}
    daemon = desk.start(site.model("a", env=endless, memory="1GiB", preload=True))
    daemon.wait_state("a", "ready")
    held(daemon)
    with streaming(daemon, "a") as response:
        logind.ask("prepare")
        slept(logind, "let")
        logind.ask("wake")
        held(daemon)
        before = response.read(100)
        assert before
        daemon.configure(QUICK + GIVE_UP + site.model("a", env=endless, memory="1GiB", preload=True))
        assert daemon.control("POST", "reload").status == 200
        logind.ask("prepare")
        slept(logind, "let", "let")
        assert not rest_of(response)[1], "cut"
        assert daemon.state("a") == "stopped"


def test_a_daemon_that_ends_holds_up_no_sleep(desk: Desk, site: Site) -> None:
    logind = desk.bus.player("logind")
    daemon = desk.start("")
    held(daemon)
    [inhibitor] = logind.ask("inhibitors")
    assert [inhibitor[0], inhibitor[1], inhibitor[3]] == ["sleep", "accelerd", "delay"]
    assert daemon.stop() == 0
    eventually(lambda: logind.ask("inhibitors") == [], "given back")


def test_on_battery_nothing_is_preloaded_and_models_leave_sooner(desk: Desk, site: Site) -> None:
    upower = desk.bus.player("upower", on_battery=True)
    policy = '[desktop]\nbattery_idle_timeout = "300ms"\n'
    stream = {"FAKE_TOKENS": "40", "FAKE_DELAY_MS": "25"}
    models = (
        site.model("a", memory="1GiB", preload=True)
        + site.model("b", env=stream, memory="1GiB")
        + site.model("c", memory="1GiB", idle_timeout="never")
    )
    daemon = desk.start(policy + models)
    eventually(lambda: desktop(daemon)["saving"] == "on battery", "the daemon knows")
    assert daemon.status("a")["idle_timeout"] == 0.3
    assert daemon.chat("c").status == 200
    daemon.wait_state("c", "stopped")
    assert site.spawns("a") == 0, "nobody asked for it"
    upower.ask("battery", False)
    daemon.wait_state("a", "ready")
    assert (daemon.status("a")["idle_timeout"], daemon.status("c")["idle_timeout"]) == (600.0, None)
    with streaming(daemon, "b") as response:
        upower.ask("battery", True)
        daemon.wait_state("a", "stopped")
        assert daemon.state("b") == "ready"
        text, complete = rest_of(response)
        assert complete
        assert len(tokens(sse(text))) == 40, "running requests notice nothing"
    daemon.wait_state("b", "stopped")
    assert (site.spawns("a"), site.spawns("b")) == (1, 1)


def test_a_reload_changes_the_policy(desk: Desk, site: Site) -> None:
    desk.bus.player("profiles", profile="power-saver")
    model = site.model("a", memory="1GiB", preload=True)
    daemon = desk.start(model)
    eventually(lambda: desktop(daemon)["saving"] == "the power profile is power-saver", "the daemon knows")
    assert daemon.status("a")["idle_timeout"] == 60.0
    daemon.configure(QUICK + '[desktop]\nbattery_idle_timeout = "5m"\n' + model)
    changed = daemon.control("POST", "reload").json()
    assert changed["settings"] == ["desktop.battery_idle_timeout"]
    assert daemon.status("a")["idle_timeout"] == 300.0
    assert site.spawns("a") == 0
    daemon.configure(QUICK + '[desktop]\non_battery = "ignore"\nnotify = false\ndelay_sleep = false\n' + model)
    assert daemon.control("POST", "reload").status == 200
    daemon.wait_state("a", "ready")
    assert daemon.status("a")["idle_timeout"] == 600.0
    found = desktop(daemon)
    assert found["saving"] is None
    assert found["notifications"]["enabled"] is False
    assert found["sleep"] == {"logind": False, "held": False, "asleep": False, "degraded": None}


def test_a_person_is_told_of_a_model_that_failed_and_not_of_its_secrets(desk: Desk, site: Site, tmp_path: Path) -> None:
    service = desk.bus.player("notifications")
    words = tmp_path / "words"
    words.write_text("the prompt was: a secret of mine\n")
    broken = site.model("a", f"words:{words},exit:1", {"TOKEN": "hunter2"}, memory="1GiB")
    daemon = desk.start("max_failures = 1\n" + broken)
    assert daemon.chat("a", messages=[{"role": "user", "content": "a prompt of mine"}]).status >= 500
    eventually(lambda: daemon.chat("a").code == "model_failed", "given up")
    [note] = eventually(lambda: service.ask("log"), "told")
    assert note["summary"] == "a failed: its program ended"
    assert note["body"].startswith("It is not retried automatically. accelctl explain a")
    told = json.dumps(service.ask("log"))
    assert not any(secret in told for secret in ("hunter2", "secret", "prompt"))
    assert desktop(daemon)["notifications"] == {"enabled": True, "degraded": None}
    assert daemon.control("POST", "reset?model=a").status == 200
    eventually(lambda: service.ask("shown") == {}, "taken back")


def test_a_bus_that_dies_breaks_no_stream_and_is_found_again(desk: Desk, site: Site) -> None:
    logind = desk.bus.player("logind")
    daemon = desk.start(site.model("a", env={"FAKE_TOKENS": "40", "FAKE_DELAY_MS": "25"}, memory="1GiB"))
    held(daemon)
    with streaming(daemon, "a") as response:
        logind.ask("prepare")
        desk.bus.stop()
        text, complete = rest_of(response)
        assert complete
        assert len(tokens(sse(text))) == 40
    eventually(lambda: not desktop(daemon)["sleep"]["asleep"], "nobody waits for a machine that tells nothing")
    assert daemon.chat("a").status == 200
    desk.bus.start()
    logind = desk.bus.player("logind")
    eventually(lambda: len(logind.ask("inhibitors")) == 1, "the daemon has found it", within=40)


def test_a_machine_without_any_of_them_serves_as_ever(desk: Desk, site: Site) -> None:
    desk.bus.stop()
    daemon = desk.start(site.model("a", memory="1GiB", preload=True))
    daemon.wait_state("a", "ready")
    assert daemon.chat("a").status == 200
    found = desktop(daemon)
    assert found["sleep"]["degraded"] == "suspend is not delayed: logind does not run"
    assert (found["saving"], found["sleep"]["held"]) == (None, False)
    assert daemon.status()["degraded"] is None or "sleep" not in daemon.status()["degraded"]
