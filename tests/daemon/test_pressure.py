"""Memory that others want: a whole daemon gives it back, to programs that take it and to people who ask for it.

The machine is one of 64 GiB that a test describes, so that what else runs here matters to none of it.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest

from tests.daemon.kit import Site, history, rest_of, side_by_side
from tests.harness import Daemon, DaemonFactory, UnixConnection, eventually, streaming
from tests.system.fake_services import private_bus

GIB = 1 << 30
MODULE = "tests.daemon.pressure_daemon"
SETTINGS = '[scheduler]\ncool_down = "300ms"\nlinger = "50ms"\n[memory]\nreserve = "4GiB"\nsoft_grace = "200ms"\n'


class Machine:
    """Main memory as the kernel tells of it."""

    def __init__(self, directory: Path) -> None:
        self.proc = directory / "proc"
        (self.proc / "pressure").mkdir(parents=True)
        self.others(10)
        self.stalls(0, 0)

    def others(self, gib: float) -> None:
        """Use so much."""
        free = int((64 - gib) * (1 << 20))
        self._put("meminfo", f"MemTotal: {64 << 20} kB\nMemFree: {free} kB\nMemAvailable: {free} kB\n")

    def stalls(self, some: float, full: float) -> None:
        """% of the last 10 s."""
        lines = (
            f"{kind} avg10={value} avg60=0.00 avg300=0.00 total=0" for kind, value in (("some", some), ("full", full))
        )
        self._put("pressure/memory", "\n".join(lines) + "\n")

    def _put(self, name: str, text: str) -> None:
        new = self.proc / "new"
        new.write_text(text)
        new.replace(self.proc / name)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


@pytest.fixture
def start(daemons: DaemonFactory, machine: Machine) -> Starter:
    return Starter(daemons, machine)


class Starter:
    def __init__(self, daemons: DaemonFactory, machine: Machine) -> None:
        self._daemons = daemons
        self._machine = machine

    def __call__(self, toml: str, **env: str) -> Daemon:
        env = {"TEST_PROC": str(self._machine.proc), **env}
        return self._daemons.start(SETTINGS + toml, env=env, module=MODULE)


def load(daemon: Daemon, *names: str) -> None:
    for name in names:
        assert daemon.events(f"load?model={name}")[-1]["event"] == "ready", daemon.output()


def ready(daemon: Daemon) -> set[str]:
    return {m["name"] for m in daemon.status()["models"] if m["state"] == "ready"}


# --- pressure -------------------------------------------------------------------------------------------------


def test_a_program_takes_memory_and_gives_it_back(start: Starter, machine: Machine, site: Site) -> None:
    daemon = start(site.model("large", memory="20GiB", preload=True) + site.model("small", memory="5GiB"))
    daemon.wait_state("large", "ready")
    load(daemon, "small")
    machine.others(38)
    assert daemon.control("GET", "memory").status == 200  # this machine has no stalls, by which the kernel would tell
    daemon.wait_state("large", "stopped")
    assert ready(daemon) == {"small"}, "one was enough"
    model = daemon.status("large")
    assert re.search(r"main memory is short: 1\.0 GiB of 64\.0 GiB free, 4\.0 GiB must stay free", model["reason"]), (
        model
    )
    assert "models are being unloaded" in daemon.output()
    machine.others(10)
    daemon.wait_state("large", "ready")
    assert ready(daemon) == {"small", "large"}
    assert daemon.chat("large").status == 200


def test_a_soft_need_spares_the_model_that_works(start: Starter, machine: Machine, site: Site) -> None:
    daemon = start(site.model("a", "stall-token", memory="20GiB") + site.model("b", memory="10GiB"))
    load(daemon, "a", "b")
    with streaming(daemon, "a"):
        eventually(lambda: daemon.status("a")["leases"], "a works")
        machine.others(31)
        daemon.wait_state("b", "stopped")
        assert daemon.state("a") == "ready"
        machine.others(62)
        daemon.wait_state("a", "draining")


# --- yield ----------------------------------------------------------------------------------------------------


def test_a_yield_empties_the_memory_and_refuses_until_resume(start: Starter, site: Site) -> None:
    daemon = start(site.model("a", memory="1GiB", preload=True) + site.model("b", memory="2GiB"))
    daemon.wait_state("a", "ready")
    load(daemon, "b")
    *progress, last = daemon.events("yield?for=3600")
    assert last["event"] == "yielded"
    assert (last["what"], last["pools"], last["stuck"]) == ("all memory", None, [])
    assert {one["model"] for one in last["models"]} == {"a", "b"}
    assert [one["pool"] for one in last["freed"]] == ["ram"]
    assert last["freed"][0]["size"] == sum(one["size"] for one in last["models"]) > 0
    assert {one["model"] for event in progress for one in event["models"]} <= {"a", "b"}
    assert ready(daemon) == set()
    refused = daemon.chat("b")
    assert (refused.status, refused.code) == (503, "yielded")
    assert 3500 < int(refused.headers["retry-after"]) <= 3600
    report = daemon.status()["yielded"]
    assert (report["why"], report["holds"][0]["who"]) == ("accelctl yield", "person")
    assert 3500 < report["remaining"] <= 3600
    answer = daemon.control("POST", "resume").json()
    assert (answer["event"], answer["resumed"], answer["back"]) == ("resumed", True, ["a"])
    assert (answer["what"], answer["why"]) == ("all memory", "accelctl yield")
    daemon.wait_state("a", "ready")
    assert daemon.status()["yielded"] is None
    assert daemon.chat("b").status == 200
    assert daemon.control("POST", "resume").json()["resumed"] is False


def test_a_yield_lets_requests_end_and_now_does_not(start: Starter, site: Site) -> None:
    daemon = start(site.model("a", "slow-token:50", memory="1GiB"))
    for now, cut in (("", False), ("now=1", True)):
        load(daemon, "a")
        with side_by_side() as do, streaming(daemon, "a", max_tokens=10) as response:
            eventually(lambda: daemon.status("a")["leases"], "a works")
            asked = do(daemon.events, f"yield?{now}")
            _, whole = rest_of(response)
            events = asked.result()
        assert events[-1]["event"] == "yielded"
        assert whole != cut
        if not cut:
            assert any(one["leases"] for event in events[:-1] for one in event["models"])
            assert "draining" in history(daemon, "a")
        assert daemon.control("POST", "resume").json()["resumed"]


def test_a_second_yield_replaces_the_first_and_it_ends_by_itself(start: Starter, site: Site) -> None:
    daemon = start(site.model("a", memory="1GiB", preload=True))
    daemon.wait_state("a", "ready")
    daemon.events("yield")
    assert daemon.status()["yielded"]["remaining"] is None
    [last] = daemon.events("yield?for=0.5")
    assert last["models"] == []
    daemon.wait_state("a", "ready")
    assert daemon.status()["yielded"] is None


def test_a_yield_goes_on_when_the_client_has_gone(start: Starter, site: Site) -> None:
    daemon = start(site.model("a", "slow-token:50", memory="1GiB"))
    load(daemon, "a")
    with streaming(daemon, "a", max_tokens=20) as response:
        eventually(lambda: daemon.status("a")["leases"], "a works")
        with contextlib.closing(UnixConnection(daemon.control_socket)) as connection:
            connection.request("POST", "/accelerd/v1/yield")
            assert json.loads(connection.getresponse().readline())["event"] == "progress"
        response.close()
    daemon.wait_state("a", "stopped")
    assert daemon.chat("a").code == "yielded"


def test_a_yield_survives_a_restart_of_the_daemon(start: Starter, site: Site) -> None:
    daemon = start(site.model("a", memory="1GiB", preload=True))
    daemon.wait_state("a", "ready")
    daemon.events("yield?for=3600")
    assert daemon.stop() == 0
    runtime = daemon.env["XDG_RUNTIME_DIR"]
    (Path(runtime) / "notify").unlink()
    daemon = start(site.model("a", memory="1GiB", preload=True), XDG_RUNTIME_DIR=runtime)
    assert daemon.chat("a").code == "yielded"
    assert daemon.status()["yielded"]["remaining"] < 3600
    daemon.control("POST", "resume")
    daemon.wait_state("a", "ready")


@pytest.mark.parametrize("query", ["for=0", "for=-1", "for=long", "for=nan", "for=1e99"])
def test_wrong_times(start: Starter, query: str) -> None:
    daemon = start("")
    answer = daemon.control("POST", f"yield?{query}")
    assert (answer.status, answer.code, answer.json()["error"]["param"]) == (400, "bad_request", "for")
    assert daemon.status()["yielded"] is None


def test_a_game_that_gamemode_knows_of_has_the_memory(start: Starter, site: Site, tmp_path: Path) -> None:
    with private_bus(tmp_path / "bus") as bus:
        models = site.model("a", memory="1GiB", preload=True)
        daemon = start(models, DBUS_SESSION_BUS_ADDRESS=bus.address)
        daemon.wait_state("a", "ready")
        gamemode = bus.service("gamemode")
        gamemode.set(1)
        daemon.wait_state("a", "stopped")
        assert daemon.status()["yielded"]["why"] == "gamemode: 1 game"
        assert daemon.chat("a").code == "yielded"
        gamemode.set(0)
        daemon.wait_state("a", "ready")
        gamemode.set(1)
        daemon.wait_state("a", "stopped")
        gamemode.stop()
        daemon.wait_state("a", "ready")
        gamemode = bus.service("gamemode", 1)
        daemon.wait_state("a", "stopped")
        daemon.configure(SETTINGS + "yield_on = []\n" + models)
        assert daemon.control("POST", "reload").status == 200
        daemon.wait_state("a", "ready")
