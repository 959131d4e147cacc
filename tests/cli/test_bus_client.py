"""accelctl over the bus: jobs that are followed, left alone or given up, and what errors of the bus come to."""

from __future__ import annotations

import json
import signal
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from accelerd.base import names
from accelerd.base.errors import BUS_NAMES
from accelerd.bus.paths import job_path
from accelerd.cli import run
from accelerd.cli.bus_client import CODES, ERRANDS, BusClient, failure
from accelerd.cli.bus_link import ERROR, Link, LinkError
from accelerd.cli.client import Client
from accelerd.cli.failure import Exit, Failure
from tests.harness import eventually
from tests.system.fake_services import Bus, private_bus

from .conftest import Ctl, Result, Stream
from .fake_bus import XML, FakeBus
from .fake_daemon import FLEET, FakeDaemon, Reply, error, events, status

WAYS = ("bus",)
STEP = {"event": "progress", "state": "starting", "elapsed": 1.0}
QUEUED = {"event": "progress", "state": "queued", "elapsed": 0.5}
READY = {"event": "ready", "model": "embed"}
JOB = job_path(1)


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Where the tests run in the background of a script, SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(
    ctl: Ctl, daemon: FakeDaemon, route: str, event: dict[str, Any], *argv: str, shown: str, over: Callable[[], Any]
) -> Result:
    """accelctl with Ctrl-C when it has `shown` the one event that comes; nothing more comes until it is `over`."""
    out, err = Stream(), Stream()

    def slow() -> Iterator[bytes]:
        yield json.dumps(event).encode()
        eventually(lambda: shown in err.getvalue(), f"{shown!r} is shown")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        eventually(over, "it is over")

    daemon.answers[f"POST {route}"] = Reply(chunks=slow())
    code = run(argv, ctl.env, Stream(), out, err)
    return Result(code, out.getvalue(), err.getvalue())


@pytest.mark.parametrize(
    ("route", "argv", "event", "shown"),
    [
        ("tune", ["tune", "embed"], {"event": "progress", "phase": "loading", "label": "as it is"}, "loading"),
        (
            "toolbox/refresh",
            ["toolbox", "refresh", "radv"],
            {"event": "progress", "step": "pull", "elapsed": 1},
            "pulls",
        ),
        ("load", ["load", "embed"], QUEUED, "waits for room"),
    ],
)
def test_ctrl_c_gives_up(
    ctl: Ctl, daemon: FakeDaemon, bus: FakeBus, route: str, argv: list[str], event: dict[str, Any], shown: str
) -> None:
    result = interrupted(ctl, daemon, route, event, *argv, shown=shown, over=lambda: bus.canceled)
    assert (result.status, bus.canceled) == (130, [JOB])
    assert result.err.endswith("interrupted\n")


@pytest.mark.parametrize(
    ("route", "argv", "event", "shown"),
    [
        ("load", ["load", "embed"], STEP, "loading"),
        ("unload", ["unload", "embed"], STEP | {"state": "draining"}, "waits for running requests"),
        ("yield", ["yield"], {"event": "progress", "models": [{"model": "embed", "state": "stopping"}]}, "stopping"),
    ],
)
def test_ctrl_c_leaves_alone_what_goes_on_for_others(
    ctl: Ctl, daemon: FakeDaemon, bus: FakeBus, route: str, argv: list[str], event: dict[str, Any], shown: str
) -> None:
    result = interrupted(ctl, daemon, route, event, *argv, shown=shown, over=lambda: True)
    assert (result.status, bus.canceled) == (130, [])


def test_a_load_that_somebody_else_began_is_not_given_up(ctl: Ctl, daemon: FakeDaemon, bus: FakeBus) -> None:
    bus.joins = True
    result = interrupted(ctl, daemon, "load", QUEUED, "load", "embed", shown="waits for room", over=lambda: True)
    assert (result.status, bus.canceled) == (130, [])


def test_a_job_that_was_done_before_anybody_listened(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST load"] = Reply(chunks=[])
    result = ctl("load", "embed", "--json")
    assert (result.status, json.loads(result.out)["event"]) == (0, "ready")


def test_a_job_that_somebody_cancels(ctl: Ctl, daemon: FakeDaemon, bus: FakeBus) -> None:
    def canceling() -> Iterator[bytes]:
        yield json.dumps(STEP).encode()
        bus.canceled.append(JOB)
        yield json.dumps(STEP).encode()

    daemon.answers["POST load"] = Reply(chunks=canceling())
    result = ctl("load", "embed")
    assert (result.status, result.err.splitlines()[-1]) == (1, "accelctl: it was canceled")


def test_events_of_other_jobs_are_not_shown(ctl: Ctl, daemon: FakeDaemon, bus: FakeBus) -> None:
    def beside() -> Iterator[bytes]:
        other = json.dumps({"event": "error", "error": {"code": "internal", "message": "of another job"}})
        bus.emit(job_path(99), f"{names.BUS_JOB}.Event", "(s)", other)
        yield json.dumps(READY).encode()

    daemon.answers["POST load"] = Reply(chunks=beside())
    assert ctl("load", "embed").status == 0


def test_B26_a_daemon_that_dies_while_it_loads(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST load"] = events(STEP, cut=True)
    result = ctl("load", "embed")
    assert result.status == 3
    assert "the daemon went away before it was done" in result.err


def test_B20_a_bus_that_dies_while_it_loads(ctl: Ctl, where: Path, tmp_path: Path) -> None:
    err = Stream()
    with (
        private_bus(tmp_path / "own") as own,
        FakeDaemon(where, {"GET status": Reply(status(*FLEET))}).serve() as daemon,
    ):
        ctl.env["DBUS_SESSION_BUS_ADDRESS"] = own.address
        with FakeBus(daemon, own.address, where.parent).serve() as bus:

            def fatal() -> Iterator[bytes]:
                yield json.dumps(STEP).encode()
                eventually(lambda: "loading" in err.getvalue(), "it is followed")
                own.stop()
                eventually(lambda: bus.dead, "the double notices")
                yield b"{}"

            daemon.answers["POST load"] = Reply(chunks=fatal())
            assert run(["load", "embed"], ctl.env, Stream(), Stream(), err) == 3
    assert "the daemon went away" in err.getvalue()


def test_a_job_of_which_nothing_is_heard_is_given_up(
    daemon: FakeDaemon, bus: FakeBus, session_bus: Bus, where: Path
) -> None:
    release = threading.Event()

    def hang() -> Iterator[bytes]:
        release.wait(20)
        yield json.dumps(READY).encode()

    daemon.answers["POST load"] = Reply(chunks=hang())
    link = Link(session_bus.address)
    link.connect(20)
    client = BusClient(link, Client(where), event_timeout=0.05)
    with pytest.raises(Failure, match="does not answer"):
        list(client.events("load", model="embed"))
    release.set()
    client.close()


def test_an_answer_that_does_not_come(daemon: FakeDaemon, bus: FakeBus, session_bus: Bus, where: Path) -> None:
    release = threading.Event()

    def hang(query: dict[str, str], body: bytes) -> Reply:
        release.wait(20)
        return Reply(status())

    daemon.answers["GET status"] = hang
    link = Link(session_bus.address)
    link.connect(20)
    client = BusClient(link, Client(where), answer_timeout=0.05)
    with pytest.raises(Failure, match="does not answer"):
        client.get("status")
    release.set()
    client.close()
    with pytest.raises(Failure, match="the connection to accelerd broke"):
        client.get("status")


def test_a_broken_configuration_shows_its_problems(ctl: Ctl, daemon: FakeDaemon) -> None:
    problem = {"file": "a.toml", "line": 3, "column": 1, "key": "models", "message": "odd", "severity": "error"}
    daemon.answers["POST reload"] = error(422, "config_invalid", "no", problems=[problem])
    result = ctl("reload")
    assert (result.status, "a.toml:3" in result.out) == (4, True), result.out


@pytest.mark.parametrize(
    ("name", "code", "status"),
    [
        (names.BUS_ERROR + "NoSuchModel", "model_not_found", Exit.NO_SUCH_MODEL),
        (names.BUS_ERROR + "NoSuchToolbox", "toolbox_not_found", Exit.NO_SUCH_MODEL),
        (names.BUS_ERROR + "ConfigInvalid", "config_invalid", Exit.CONFIG_INVALID),
        (names.BUS_ERROR + "Draining", "shutting_down", Exit.UNREACHABLE),
        (names.BUS_ERROR + "LimitsExceeded", "too_many_calls", Exit.FAILED),
        (names.BUS_ERROR + "InvalidArgument", "bad_request", Exit.FAILED),
        (names.BUS_ERROR + "OfALaterVersion", "failed", Exit.FAILED),
        (ERROR + "ServiceUnknown", "not_running", Exit.UNREACHABLE),
        (ERROR + "NoReply", "connection_lost", Exit.UNREACHABLE),
        (ERROR + "Timeout", "no_answer", Exit.UNREACHABLE),
        (ERROR + "UnknownMethod", "not_found", Exit.FAILED),
        (ERROR + "AccessDenied", "failed", Exit.FAILED),
    ],
)
def test_errors_of_the_bus(name: str, code: str, status: Exit) -> None:
    found = failure(LinkError(name, "what it says"))
    assert (found.code, found.exit) == (code, status)
    assert found.message


def test_every_error_of_accelerd_has_a_code() -> None:
    assert set(CODES) == set(BUS_NAMES.values())
    assert all(BUS_NAMES[code] == name for name, code in CODES.items())


def test_errands_are_as_the_interface_has_them() -> None:
    manager = ElementTree.parse(XML / f"{names.BUS_MANAGER}.xml").find("interface")
    assert manager is not None
    found = {
        method.get("name"): "".join(
            arg.get("type", "") for arg in method.findall("arg") if arg.get("direction") == "in"
        )
        for method in manager.findall("method")
    }
    assert {errand.method: errand.signature for errand in ERRANDS.values()} == {
        errand.method: f"({found[errand.method]})" for errand in ERRANDS.values()
    }
