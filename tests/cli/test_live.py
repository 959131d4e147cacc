"""accelctl and a whole daemon: a load as it is printed, events of a real load, Ctrl-C."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from accelerd.cli import run
from tests.daemon.kit import QUICK, Site
from tests.harness import Daemon, DaemonFactory, eventually

from .conftest import Result, Stream


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("live")
    site = Site(directory)
    toml = [
        QUICK,
        site.model("m", memory=5_000_000, aliases=["gpt"]),
        site.model("slow", "slow-load:60", memory=5_000_000),
        site.model("broken", "exit:9", memory=5_000_000),
    ]
    with DaemonFactory(directory) as daemons:
        yield daemons.start("".join(toml))


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Where the tests run in the background of a script, SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ctl(daemon: Daemon, *argv: str) -> Result:
    out, err = Stream(), Stream()
    env = daemon.env | {"ACCELERD_SOCKET": str(daemon.control_socket)}
    return Result(run(argv, env, Stream(), out, err), out.getvalue(), err.getvalue())


def interrupted(daemon: Daemon, act: Callable[[Stream, Stream], Any], *argv: str) -> Result:
    """accelctl, ended by Ctrl-C when `act(out, err)` is over."""
    out, err = Stream(), Stream()
    faults: list[BaseException] = []

    def person() -> None:
        try:
            act(out, err)
        except BaseException as fault:
            faults.append(fault)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    actor = threading.Thread(target=person)
    actor.start()
    status = run(argv, daemon.env | {"ACCELERD_SOCKET": str(daemon.control_socket)}, Stream(), out, err)
    actor.join()
    if faults:
        raise faults[0]
    return Result(status, out.getvalue(), err.getvalue())


def test_a_load_and_an_unload(daemon: Daemon) -> None:
    loaded, stopped = ctl(daemon, "load", "gpt", "--json"), ctl(daemon, "unload", "m", "--json")
    assert (loaded.status, stopped.status) == (0, 0), loaded.out + stopped.out
    assert [json.loads(one.out)["event"] for one in (loaded, stopped)] == ["ready", "stopped"]


def test_a_load_that_fails(daemon: Daemon) -> None:
    result = ctl(daemon, "load", "broken", "--json")
    assert result.status == 1
    assert json.loads(result.out)["error"]["code"] in ("model_failed", "model_backing_off")


def test_ctrl_c_leaves_a_load_alone_that_has_begun(daemon: Daemon) -> None:
    shown = interrupted(
        daemon, lambda out, err: eventually(lambda: "slow: loading" in err.getvalue(), ""), "load", "slow"
    )
    assert (shown.status, daemon.status("slow")["state"]) == (130, "starting")
    assert shown.err.endswith("interrupted; slow: it goes on loading; to end that: accelctl unload slow\n")
    assert ctl(daemon, "unload", "slow", "--force").status == 0


@pytest.mark.parametrize(
    "argv", [["status"], ["models"], ["memory"], ["memory", "learned"], ["devices"], ["explain", "m"]], ids=" ".join
)
def test_every_page_can_be_printed(daemon: Daemon, argv: list[str]) -> None:
    page, value = ctl(daemon, *argv), ctl(daemon, *argv, "--json")
    assert (page.status, page.err, value.status) == (0, "", 0)
    assert page.out
    assert json.loads(value.out)


def test_monitor_tells_of_a_real_load(daemon: Daemon) -> None:
    def act(out: Stream, err: Stream) -> None:
        eventually(lambda: "watching" in err.getvalue(), "it watches")
        assert daemon.control("POST", "load?model=m").status == 200
        eventually(lambda: "→ ready" in out.getvalue(), "it is told")
        daemon.control("POST", "unload?model=m")
        eventually(lambda: "→ stopped" in out.getvalue(), "it is told")

    result = interrupted(daemon, act, "monitor", "gpt")
    assert result.status == 0
    assert result.err == "watching m; stop with Ctrl-C\n"
    lines = [line.partition("  ")[2] for line in result.out.splitlines()]
    assert any(line.startswith("m: stopped → starting") for line in lines)
    assert any(line.endswith("load m: done") for line in lines), lines
