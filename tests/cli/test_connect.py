"""What accelctl says when the connection to the daemon is not what it should be."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from accelerd.cli.connect import DaemonClient, control
from accelerd.cli.failure import ExitStatus, Failure

from .conftest import Ctl
from .fake_daemon import FakeDaemon, Reply, error, events, status

NEEDS_DAEMON = (
    ["status"], ["models"], ["load", "m"], ["unload", "m"], ["reset", "m"], ["logs", "m"], ["reload"], ["explain", "m"],
    ["chat", "m", "hello"],
)  # fmt: skip


@pytest.mark.parametrize("argv", NEEDS_DAEMON, ids=lambda argv: argv[0])
def test_daemon_not_running_names_the_command_that_starts_it(ctl: Ctl, argv: list[str]) -> None:
    result = ctl(*argv)
    assert result.status == 3
    assert result.out == ""
    assert result.err.count("\n") == 1
    assert "accelerd is not running" in result.err
    assert "systemctl --user start accelerd" in result.err


def test_under_sudo_another_users_accelerd_is_not_started(ctl: Ctl) -> None:
    err = ctl("status", SUDO_USER="tester").err
    assert "without sudo, as tester" in err
    assert "systemctl" not in err


def test_daemon_not_running_as_json(ctl: Ctl) -> None:
    result = ctl("status", "--json")
    assert result.status == 3
    problem = json.loads(result.out)["error"]
    assert problem["code"] == "not_running"
    assert "systemctl" in problem["hint"]
    assert result.err == ""


def test_socket_without_listener(ctl: Ctl, short: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(short / "s"))
    assert "is not running" in ctl("status").err


def test_path_too_long_for_a_socket(ctl: Ctl) -> None:
    result = ctl("--socket", "/tmp/" + "x" * 200, "status")
    assert result.status == 3
    assert "--socket" in result.err


def test_answers_that_are_no_answers(ctl: Ctl, daemon: FakeDaemon) -> None:
    for reply, words in (
        (Reply(chunks=[b"<html>"]), "not JSON"),
        (Reply(chunks=[b"[" * 100_000]), "not JSON"),
        (Reply([1, 2]), "not an object"),
        (Reply(status=500, chunks=[b"oops"]), "HTTP status 500"),
        (Reply(chunks=[b'{"version"'], cut=True), "the connection to accelerd broke"),
        (error(503, "shutting_down", "accelerd is stopping"), "accelerd is stopping"),
    ):
        daemon.answers["GET status"] = reply
        result = ctl("status")
        assert result.status in (1, 3)
        assert words in result.err


def test_the_host_is_this_one(ctl: Ctl, daemon: FakeDaemon) -> None:
    assert ctl("status").status == 0
    assert [request.host for request in daemon.requests] == ["localhost"]


def test_events_that_end_too_early(ctl: Ctl, daemon: FakeDaemon) -> None:
    progress = {"event": "progress", "state": "starting", "elapsed": 1.0}
    for cut in (True, False):
        daemon.answers["POST load"] = events(progress, cut=cut)
        result = ctl("load", "embed")
        assert result.status == 3
        assert "journalctl --user -u accelerd" in result.err


def test_a_daemon_that_hangs_is_given_up(short: Path) -> None:
    release = threading.Event()

    def hang(query: dict[str, str], body: bytes) -> Reply:
        release.wait(10)
        return Reply(status())

    with FakeDaemon(short / "s", {"GET status": hang}).serve() as daemon:
        with pytest.raises(Failure, match="did not answer in time") as caught:
            DaemonClient(daemon.path, answer_timeout=0.05).get("status")
        release.set()
    assert caught.value.exit == ExitStatus.UNREACHABLE


def test_another_users_socket(short: Path) -> None:
    with pytest.raises(Failure, match="belongs to another user"), DaemonClient(short / "s")._transport_errors():
        raise PermissionError(13, "Permission denied")


def test_targets_are_quoted_and_empty_values_left_out() -> None:
    assert control("logs", {"model": "a b/c&d", "lines": None, "follow": False}) == (
        "/accelerd/v1/logs?model=a+b%2Fc%26d"
    )
    assert control("logs", {"model": "m", "lines": 0}) == "/accelerd/v1/logs?model=m&lines=0"
