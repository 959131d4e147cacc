"""accelctl and a whole daemon on a private bus: the same over the bus as over the socket, and events of a real load."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from accelerd.base.ports import Roots
from accelerd.cli import run
from accelerd.cli.way import Chooser
from tests.bus.live import environment
from tests.daemon.conftest import site
from tests.daemon.kit import QUICK, Site
from tests.harness import Daemon, DaemonFactory, eventually
from tests.system.fake_services import Bus, private_bus

from .conftest import Result, Stream

__all__ = ["site"]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, session_bus: Bus) -> Iterator[Daemon]:
    """On a bus of its own; `session_bus` has GLib begin what it keeps for ever."""
    directory = tmp_path_factory.mktemp("live")
    site = Site(directory)
    toml = [
        QUICK,
        site.model("m", memory=5_000_000, aliases=["gpt"]),
        site.model("slow", "slow-load:60", memory=5_000_000),
        site.model("broken", "exit:9", memory=5_000_000),
    ]
    with private_bus(directory / "bus") as bus, DaemonFactory(directory) as daemons:
        yield daemons.start("".join(toml), env=environment(bus))


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Where the tests run in the background of a script, SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ctl(daemon: Daemon, *argv: str, way: str = "bus") -> Result:
    out, err = Stream(), Stream()
    env = daemon.env | ({"ACCELERD_SOCKET": str(daemon.control_socket)} if way == "socket" else {})
    return Result(run(argv, env, Stream(), out, err), out.getvalue(), err.getvalue())


def test_it_is_the_bus_that_is_used(daemon: Daemon) -> None:
    client = Chooser(Roots.from_env(daemon.env), daemon.env)
    found = client.way()
    client.close()
    assert found.name == "bus", found.why


@pytest.mark.parametrize(
    "argv",
    [
        ["models"],
        ["memory", "learned", "--json"],
        ["memory", "forget", "m"],
        ["memory", "forget", "--all", "--json"],
        ["reload"],
        ["reload", "--json"],
        ["reset", "m", "--json"],
        ["reset", "gpt"],
        ["resume"],
        ["resume", "--json"],
        ["logs", "m"],
        ["logs", "m", "-n", "1", "--json"],
        ["version"],
        ["load", "gtp"],
        ["unload", "nothing"],
        ["reset", "nothing", "--json"],
        ["explain", "nothing"],
        ["logs", "nothing"],
        ["tune", "nothing", "--no"],
        ["memory", "forget", "nothing"],
    ],
    ids=" ".join,
)
def test_the_same_both_ways(daemon: Daemon, argv: list[str]) -> None:
    assert ctl(daemon, *argv) == ctl(daemon, *argv, way="socket")


@pytest.mark.parametrize(
    "argv", [["status"], ["explain", "m"], ["memory"], ["devices"], ["toolbox", "list", "--known"]], ids=" ".join
)
def test_what_changes_all_the_time_has_the_same_shape(daemon: Daemon, argv: list[str]) -> None:
    one, other = (json.loads(ctl(daemon, *argv, "--json", way=way).out) for way in ("bus", "socket"))
    assert shape(one) == shape(other)


def shape(value: Any) -> Any:
    """The keys, all the way down."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items() if key not in ("foreign_users", "degraded")}
    return [shape(one) for one in value[:3]] if isinstance(value, list) else None


def test_a_load_and_an_unload_both_ways(daemon: Daemon) -> None:
    told = {}
    for way in ("bus", "socket"):
        loaded, stopped = ctl(daemon, "load", "gpt", "--json", way=way), ctl(daemon, "unload", "m", "--json", way=way)
        assert (loaded.status, stopped.status) == (0, 0), loaded.out + stopped.out
        told[way] = [json.loads(loaded.out), json.loads(stopped.out)]
    for one, other in zip(told["bus"], told["socket"], strict=True):
        assert (one.keys(), one["event"], one["model"]) == (other.keys(), other["event"], other["model"])


def test_a_load_that_fails_says_the_same_both_ways(daemon: Daemon) -> None:
    errors = []
    for way in ("bus", "socket"):
        result = ctl(daemon, "load", "broken", "--json", way=way)
        assert result.status == 1
        errors.append(json.loads(result.out)["error"])
    assert errors[0].keys() == errors[1].keys()
    assert errors[0]["code"] == errors[1]["code"]


def test_ctrl_c_leaves_a_load_alone_that_has_begun(daemon: Daemon) -> None:
    out, err = Stream(), Stream()

    def impatient() -> None:
        eventually(lambda: "slow: loading" in err.getvalue(), "it loads")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    person = threading.Thread(target=impatient)
    person.start()
    status = run(["load", "slow"], daemon.env, Stream(), out, err)
    person.join()
    assert (status, daemon.status("slow")["state"]) == (130, "starting")
    assert ctl(daemon, "unload", "slow", "--force").status == 0


def test_monitor_tells_of_a_real_load(daemon: Daemon) -> None:
    out, err = Stream(), Stream()

    def person() -> None:
        try:
            eventually(lambda: "watching" in err.getvalue(), "it watches")
            daemon.control("POST", "load?model=m")
            eventually(lambda: "→ ready" in out.getvalue(), "it is told")
            daemon.control("POST", "unload?model=m")
            eventually(lambda: "→ stopped" in out.getvalue(), "it is told")
        finally:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    actor = threading.Thread(target=person)
    actor.start()
    status = run(["monitor", "gpt"], daemon.env, Stream(), out, err)
    actor.join()
    assert status == 0
    assert err.getvalue() == "watching m; Ctrl-C ends it\n"
    lines = [line.partition("  ")[2] for line in out.getvalue().splitlines()]
    assert lines[0].startswith("m: stopped → starting")
    assert lines[-1].startswith("m: ")
    assert "→ stopped" in lines[-1]
