"""accelctl monitor: what it prints of the event stream, to people and to programs, and how it ends."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from accelerd.base.ports import Roots
from accelerd.cli.commands import monitor
from accelerd.cli.connect import DaemonClient
from accelerd.cli.context import Context
from accelerd.cli.output import CliOutput
from accelerd.cli.programs import ProgramResult
from accelerd.cli.time_of_day import moment
from tests.harness import eventually

from .conftest import Ctl, Stream
from .fake_daemon import FakeDaemon, Reply, events, model, status

GPU = "0000:c5:00.0"
MODEL = {"event": "model", "model": "embed", "state": "starting", "before": "stopped", "reason": "requested"}
STATUS = status(model("qwen/3", aliases=["big"]), model("embed", "ready"))


@pytest.fixture
def fleet(daemon: FakeDaemon) -> FakeDaemon:
    daemon.answers["GET status"] = Reply(STATUS)
    return daemon


def told(ctl: Ctl, fleet: FakeDaemon, *items: dict[str, Any], only: tuple[str, ...] = ()) -> list[str]:
    """The lines for these events, without the times."""
    return [line.partition("  ")[2] for line in printed(ctl, fleet, *items, only=only).splitlines()]


def printed(
    ctl: Ctl, fleet: FakeDaemon, *items: dict[str, Any], only: tuple[str, ...] = (), json_mode: bool = False
) -> str:
    fleet.answers["GET events"] = events(*items)
    stream = Stream()
    out = CliOutput(stream, Stream(), ctl.env, json_mode=json_mode)
    context = Context(Roots.from_env(ctl.env), DaemonClient(ctl.socket), out, Stream(), ctl.env)
    for event in monitor.watch(context, only, NoSystemd(), pause=lambda seconds: None):
        if event.get("state") == "gone":
            return stream.getvalue()
        monitor.show(out, {"at": moment(), **event})
    raise AssertionError("it never ends by itself")


class NoSystemd:
    def run(self, argv: Any, timeout: float = 10.0) -> ProgramResult:
        return ProgramResult(127, "", "")


def test_states_of_models(ctl: Ctl, fleet: FakeDaemon) -> None:
    failed = {**MODEL, "state": "failed", "error": {"code": "exited", "message": "llama-server exited\x1b[2J"}}
    assert told(
        ctl,
        fleet,
        MODEL,
        failed,
        {"event": "model", "model": "new", "state": "stopped", "change": "added"},
        {"event": "model", "model": "embed", "state": "ready", "change": "outdated"},
    ) == [
        "embed: stopped → starting (requested)",
        "embed: stopped → failed (llama-server exited\\x1b[2J)",
        "new: added (stopped)",
        "embed: its configuration has changed; it restarts when its running requests have ended",
    ]


def test_jobs_devices_memory_and_the_daemon(ctl: Ctl, fleet: FakeDaemon) -> None:
    job = {"event": "job", "job": 7, "kind": "load", "subject": "qwen/3", "state": "running", "phase": "starting"}
    pool = {"id": "ram", "label": "main memory", "free": 4 << 30, "capacity": 16 << 30}
    assert told(
        ctl,
        fleet,
        job,
        {**job, "state": "done", "result": "done"},
        {**job, "subject": None, "kind": "tune", "state": "done", "result": "failed", "error": {"message": "no room"}},
        {"event": "device", "device": GPU, "name": "Radeon", "change": "removed", "reason": ""},
        {"event": "device", "device": GPU, "name": "Radeon", "change": "changed", "reason": "no firmware"},
        {"event": "memory", "pools": [pool]},
        {"event": "manager", "change": "state", "state": "running", "degraded": "there is no systemd"},
        {"event": "weather", "sky": "blue"},
    ) == [
        "job 7, load qwen/3: starting",
        "job 7, load qwen/3: done",
        "job 7, tune: failed (no room)",
        f"Radeon ({GPU}): removed",
        f"Radeon ({GPU}): changed (no firmware)",
        "memory: main memory: 4.0 GiB of 16.0 GiB free",
        "accelerd: running (there is no systemd)",
        "weather: sky blue",
    ]


def test_yields_pins_power_and_configurations(ctl: Ctl, fleet: FakeDaemon) -> None:
    def manager(change: str, **keys: Any) -> dict[str, Any]:
        return {"event": "manager", "change": change, **keys}

    pin = {"model": "embed", "who": "org.example.Talk", "reason": "a talk"}
    assert told(
        ctl,
        fleet,
        manager("yield", yielded={"what": "the GPU", "why": "gamemode: 1 game"}),
        manager("yield"),
        manager("pin", pinned=True, hold=False, **pin),
        manager("pin", pinned=True, hold=True, **pin),
        manager("pin", pinned=False, hold=True, **pin),
        manager("power", reason="on battery"),
        manager("power"),
        manager("configuration"),
        manager("configuration", in_use=False),
    ) == [
        "yield: the GPU is yielded (gamemode: 1 game)",
        "yield: models may use all memory again",
        "embed: org.example.Talk keeps it loaded (a talk)",
        "embed: org.example.Talk holds it in memory (a talk)",
        "embed: org.example.Talk releases it",
        "accelerd: saving power (on battery)",
        "accelerd: no longer saving power",
        "accelerd: a new configuration is in effect",
        "accelerd: the configuration on disk has errors and is not in use: accelctl config check",
    ]


def test_only_some_models(ctl: Ctl, fleet: FakeDaemon) -> None:
    job = {"event": "job", "job": 2, "kind": "load", "subject": "qwen/3", "state": "running", "phase": ""}
    other = {"event": "device", "device": GPU, "name": "Radeon", "change": "removed", "reason": ""}
    assert told(ctl, fleet, MODEL, job, other, only=("big",)) == ["job 2, load qwen/3: running"]


def test_json_is_an_object_per_line(ctl: Ctl, fleet: FakeDaemon) -> None:
    (event,) = map(json.loads, printed(ctl, fleet, MODEL, json_mode=True).splitlines())
    assert event.pop("at")[:2] == "20"
    assert event == MODEL


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Where the tests run in the background of a script, SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_events_are_printed_as_they_come_until_ctrl_c(ctl: Ctl, fleet: FakeDaemon) -> None:
    out, err, seen = Stream(), Stream(), threading.Event()

    def slow() -> Iterator[bytes]:
        yield json.dumps(MODEL).encode() + b"\n"
        eventually(lambda: "starting" in out.getvalue(), "it is printed while more may come")
        seen.set()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        eventually(lambda: over.is_set(), "it has ended")

    def asked(query: object, body: object) -> Reply:
        early.append(err.getvalue())
        return Reply(chunks=slow())

    early, over = list[str](), threading.Event()
    fleet.answers["GET events"] = asked
    try:
        assert run_monitor(ctl, out, err) == 0
    finally:
        over.set()
    assert seen.is_set()
    assert early == [""], "it said that it watched before it did"
    assert err.getvalue() == "watching 2 models; stop with Ctrl-C\n"


def run_monitor(ctl: Ctl, out: Stream, err: Stream) -> int:
    from accelerd.cli import run

    return run(["monitor"], ctl.env, Stream(), out, err)


def asking(ctl: Ctl) -> Context:
    out = CliOutput(Stream(), Stream(), {})
    return Context(Roots.from_env(ctl.env), DaemonClient(ctl.socket), out, Stream(), ctl.env)


def test_a_daemon_that_restarts(ctl: Ctl, fleet: FakeDaemon) -> None:
    rounds = iter([events(MODEL, cut=True), events({**MODEL, "state": "ready"})])
    fleet.answers["GET events"] = lambda query, body: next(rounds)
    context = Context(
        Roots.from_env(ctl.env), DaemonClient(ctl.socket), CliOutput(Stream(), Stream(), {}), Stream(), {}
    )
    seen = monitor.watch(context, (), NoSystemd(), pause=lambda seconds: None)
    assert [next(seen).get("state") for _ in range(4)] == ["starting", "gone", "back", "ready"]


def test_a_stream_that_lost_events_begins_again(ctl: Ctl, fleet: FakeDaemon) -> None:
    rounds = iter([events(MODEL, {"event": "lost", "events": 3}), events({**MODEL, "state": "ready"})])
    fleet.answers["GET events"] = lambda query, body: next(rounds)
    seen = monitor.watch(asking(ctl), ("embed",), NoSystemd(), pause=lambda seconds: None)
    assert [next(seen).get("state") for _ in range(4)] == ["starting", None, "ready", "gone"]
    assert monitor.of_lost({"event": "lost", "events": 3}) == (
        "accelerd", "3 events lost: they were printed too slowly",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("socket", "service", "connects"),
    [("active", "inactive", False), ("active", "active", True), ("inactive", "inactive", True), (None, None, True)],
)
def test_a_stopped_service_is_not_started_again(
    ctl: Ctl, fleet: FakeDaemon, socket: str | None, service: str, connects: bool
) -> None:
    class Systemd:
        def run(self, argv: Any, timeout: float = 10.0) -> ProgramResult:
            state = socket if argv[-1].endswith(".socket") else service
            return ProgramResult(1 if socket is None else 0, f"LoadState=loaded\nActiveState={state}\n", "")

    context = Context(
        Roots.from_env(ctl.env), DaemonClient(ctl.socket), CliOutput(Stream(), Stream(), {}), Stream(), {}
    )
    assert monitor.back(context, Systemd()) is connects
    assert bool(fleet.requests) is connects


def test_a_name_that_no_model_has(ctl: Ctl, fleet: FakeDaemon) -> None:
    result = ctl("monitor", "embd")
    assert (result.status, result.out) == (5, "")
    assert result.err == "accelctl: there is no model 'embd'; did you mean embed?\n"


def test_no_daemon(ctl: Ctl) -> None:
    result = ctl("monitor")
    assert result.status == 3
    assert "accelerd is not running" in result.err


def test_local_time_has_its_offset() -> None:
    assert len(moment()) == len("2026-05-04T21:40:30.000+02:00")
