"""accelctl monitor over a fake org.accelerd1: what is told, to people and to programs, and how it ends."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from accelerd.base import names
from accelerd.bus.paths import device_path, job_path, model_path
from accelerd.cli import run
from accelerd.cli.commands.monitor import ordinal
from accelerd.cli.daytime import moment
from tests.harness import eventually

from .conftest import Ctl, Result, Stream
from .fake_bus import FakeBus
from .fake_daemon import FakeDaemon

WAYS = ("bus",)
GPU = "0000:c5:00.0"
Play = Callable[[Callable[[str], Any]], None]


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Where the tests run in the background of a script, SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def world(bus: FakeBus) -> FakeBus:
    """Two models and a GPU."""
    bus.model("qwen/3", Aliases=["big"])
    bus.model("embed", State="ready")
    bus.publish(device_path(GPU), names.BUS_DEVICE, Id=GPU, Name="Radeon", State="ok")
    return bus


def monitor(ctl: Ctl, play: Play, *argv: str, interrupt: bool = True) -> Result:
    """accelctl monitor while `play(saw)` happens; `saw(words)` waits until they were printed. Then Ctrl-C."""
    out, err = Stream(), Stream()
    faults: list[BaseException] = []

    def saw(words: str) -> None:
        eventually(lambda: words in out.getvalue(), f"{words!r} is told")

    def act() -> None:
        try:
            eventually(lambda: "watching" in err.getvalue(), "it watches")
            play(saw)
        except BaseException as fault:
            faults.append(fault)
        if interrupt or faults:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    actor = threading.Thread(target=act)
    actor.start()
    status = run(["monitor", *argv], ctl.env, Stream(), out, err)
    actor.join()
    if faults:
        raise faults[0]
    return Result(status, out.getvalue(), err.getvalue())


def told(result: Result) -> list[str]:
    """Without the times."""
    return [line.partition("  ")[2] for line in result.out.splitlines()]


def test_a_load_is_told_as_it_happens(ctl: Ctl, world: FakeBus) -> None:
    path = model_path("qwen/3")

    def play(saw: Callable[[str], Any]) -> None:
        job = job_path(7)
        world.publish(job, names.BUS_JOB, Id=7, Kind="load", Subject=path, State="waiting", Phase="queued")
        world.change(path, names.BUS_MODEL, State="starting", StateReason="requested")
        world.change(job, names.BUS_JOB, State="running", Phase="starting", Progress=0.1)
        saw("job 7, load qwen/3: starting")
        world.change(job, names.BUS_JOB, Progress=0.7)
        world.change(job, names.BUS_JOB, State="done", Result="done", Progress=1.0)
        world.change(path, names.BUS_MODEL, State="ready", StateReason="answered", MemoryUsed=5 << 30)
        saw("ready")

    result = monitor(ctl, play)
    assert (result.status, result.err) == (0, "watching 2 models and 1 device; Ctrl-C ends it\n")
    assert told(result) == [
        "job 7, load qwen/3: queued",
        "qwen/3: stopped → starting (requested)",
        "job 7, load qwen/3: starting",
        "job 7, load qwen/3: done",
        "qwen/3: starting → ready (answered)",
    ]


def test_failures_carry_their_reason_and_nothing_that_a_terminal_obeys(ctl: Ctl, world: FakeBus) -> None:
    def play(saw: Callable[[str], Any]) -> None:
        error = ("exited", "llama-server exited\x1b[2J with status 1")
        world.change(model_path("embed"), names.BUS_MODEL, State="failed", StateReason="exited", LastError=error)
        world.publish(job_path(1), names.BUS_JOB, Id=1, Kind="tune", State="running")
        world.change(job_path(1), names.BUS_JOB, State="done", Result="failed", ErrorName="x", ErrorMessage="no room")
        world.change(device_path(GPU), names.BUS_DEVICE, State="lost", StateReason="it was removed")
        saw("removed")

    assert told(monitor(ctl, play)) == [
        "embed: ready → failed (llama-server exited\\x1b[2J with status 1)",
        "job 1, tune: running",
        "job 1, tune: failed (no room)",
        f"Radeon ({GPU}): ok → lost (it was removed)",
    ]


def test_yields_pins_and_the_daemon_itself(ctl: Ctl, world: FakeBus) -> None:
    from gi.repository import GLib

    def manager(**values: Any) -> None:
        world.change(names.BUS_PATH, names.BUS_MANAGER, **values)

    def play(saw: Callable[[str], Any]) -> None:
        manager(Yield={"what": GLib.Variant("s", "the GPU"), "why": GLib.Variant("s", "gamemode: 1 game")})
        manager(Yield={})
        one, two = (
            (3, model_path("embed"), "pin", "a talk", "org.example.Talk"),
            (4, model_path("embed"), "hold", "x", ""),
        )
        manager(Pins=[one])
        manager(Pins=[one, two])
        manager(Pins=[two])
        manager(State="degraded", DegradedReasons=["there is no systemd"])
        manager(ConfigGeneration=1)
        manager(ConfigGeneration=2)
        saw("2nd")

    assert told(monitor(ctl, play)) == [
        "yield: the GPU is given up (gamemode: 1 game)",
        "yield: over: models may use the GPU again",
        "embed: org.example.Talk keeps it loaded (a talk)",
        "embed: a program keeps it from being evicted (x)",
        "embed: org.example.Talk lets it go",
        "accelerd: degraded (there is no systemd)",
        "configuration: a new one is in force, the 2nd",
    ]


def test_models_and_devices_that_come_and_go(ctl: Ctl, world: FakeBus) -> None:
    def play(saw: Callable[[str], Any]) -> None:
        world.model("new")
        world.change(model_path("embed"), names.BUS_MODEL, NeedsRestart=True)
        world.remove(model_path("embed"))
        world.remove(device_path(GPU))
        world.change(names.BUS_PATH, names.BUS_MANAGER, NModels=2)
        saw(GPU)

    assert told(monitor(ctl, play)) == [
        "new: added (stopped)",
        "embed: its configuration has changed; it is restarted when its requests have ended",
        "embed: removed (ready)",
        f"Radeon ({GPU}): removed",
    ]


def test_only_what_concerns_some_models(ctl: Ctl, world: FakeBus) -> None:
    def play(saw: Callable[[str], Any]) -> None:
        world.change(model_path("embed"), names.BUS_MODEL, State="stopping")
        world.change(device_path(GPU), names.BUS_DEVICE, State="busy")
        world.publish(job_path(1), names.BUS_JOB, Id=1, Kind="unload", Subject=model_path("embed"), State="running")
        world.publish(job_path(2), names.BUS_JOB, Id=2, Kind="load", Subject=model_path("qwen/3"), State="running")
        saw("job 2")

    result = monitor(ctl, play, "big")
    assert told(result) == ["job 2, load qwen/3: running"]
    assert result.err.startswith("watching qwen/3;")


def test_json_is_an_object_a_line(ctl: Ctl, world: FakeBus) -> None:
    def play(saw: Callable[[str], Any]) -> None:
        world.change(model_path("embed"), names.BUS_MODEL, State="stopping", StateReason="idle")
        saw("stopping")

    (event,) = map(json.loads, monitor(ctl, play, "--json").out.splitlines())
    assert event.pop("at")[:2] == "20"
    assert event == {"event": "model", "model": "embed", "state": "stopping", "before": "ready", "reason": "idle"}


def test_a_daemon_that_goes_and_comes_back(ctl: Ctl, world: FakeBus, daemon: FakeDaemon) -> None:
    again = FakeBus(daemon, ctl.env["DBUS_SESSION_BUS_ADDRESS"], ctl.socket.parent)

    def play(saw: Callable[[str], Any]) -> None:
        world.vanish()
        saw("gone")
        with again.serve():
            saw("back")
            again.model("other")
            saw("other")

    assert told(monitor(ctl, play))[:3] == ["accelerd: gone", "accelerd: back", "other: added (stopped)"]


def test_a_name_that_no_model_has(ctl: Ctl, world: FakeBus) -> None:
    result = ctl("monitor", "embd")
    assert (result.status, result.out) == (5, "")
    assert result.err == "accelctl: no model is called embd; did you mean embed?\n"


def test_a_daemon_that_is_not_on_the_bus(ctl: Ctl) -> None:
    result = ctl("monitor")
    assert result.status == 3
    assert "accelerd is not running (nobody has the name org.accelerd1 on the session bus)" in result.err


def test_a_socket_that_is_named_is_no_bus(ctl: Ctl, daemon: FakeDaemon) -> None:
    result = ctl("--socket", str(ctl.socket), "monitor")
    assert result.status == 3
    assert "leave --socket out" in result.err


def test_no_session_bus(ctl: Ctl, daemon: FakeDaemon) -> None:
    result = ctl("monitor", "--json", DBUS_SESSION_BUS_ADDRESS="")
    assert result.status == 3
    error = json.loads(result.out)["error"]
    assert (error["code"], error["message"]) == ("no_bus", "nothing can be watched: there is no session bus")
    assert "journalctl" in error["hint"]


def test_ordinals() -> None:
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 21, 112)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "21st", "112th",
    ]  # fmt: skip
    assert len(moment()) == len("2026-05-04T21:40:30.000+02:00")
