"""accelctl yield and resume: what is asked of the daemon, and what a person reads."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from accelerd.cli.failure import Failure
from accelerd.cli.time_of_day import seconds_until, time_in

from .conftest import Ctl
from .fake_daemon import FLEET, FakeDaemon, Reply, error, events, status

GIB = 1 << 30


def outcome(**changes: Any) -> dict[str, Any]:
    return {
        "event": "yielded", "what": "the GPU", "pools": ["0000:c1:00.0"], "remaining": None, "why": "accelctl yield",
        "holds": [{"who": "person", "why": "accelctl yield", "remaining": None}],
        "freed": [{"pool": "0000:c1:00.0", "label": "AMD Radeon", "size": 20 * GIB}],
        "models": [{"model": "qwen", "size": 14 * GIB}, {"model": "embed", "size": 6 * GIB}], "stuck": [],
        "elapsed": 1.2,
    } | changes  # fmt: skip


def test_yield_tells_who_leaves_and_what_is_back(ctl: Ctl, daemon: FakeDaemon) -> None:
    working = {"model": "qwen", "state": "draining", "leases": 1}
    daemon.answers["POST yield"] = events(
        {"event": "progress", "elapsed": 0.1, "models": [working, {"model": "embed", "state": "stopping"}]},
        {"event": "progress", "elapsed": 0.3, "models": [working]},
        {"event": "progress", "elapsed": 0.6, "models": [working | {"state": "stopping", "leases": 0}]},
        outcome(),
    )
    result = ctl("yield")
    assert result.status == 0
    assert result.out == "the GPU is free (20.0 GiB freed by qwen, embed); to end this: accelctl resume\n"
    assert result.err.splitlines() == [
        "qwen: waiting for running requests (1 request)",
        "embed: stopping",
        "qwen: stopping",
    ]
    assert daemon.requests[-1].query == {}


@pytest.mark.parametrize(
    ("argv", "query"),
    [
        (["--for", "2h"], {"for": "7200.0"}),
        (["--for", "90", "--now"], {"for": "90.0", "now": "1"}),
        (["--all"], {"all": "1"}),
    ],
)
def test_what_is_asked(ctl: Ctl, daemon: FakeDaemon, argv: list[str], query: dict[str, str]) -> None:
    daemon.answers["POST yield"] = events(outcome(remaining=7200.0, models=[], freed=[]))
    result = ctl("yield", *argv)
    assert daemon.requests[-1].query == query
    assert "the GPU is free until " in result.out
    assert "(no model was using it)" in result.out


def test_until_a_time_of_day(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST yield"] = events(outcome())
    assert ctl("yield", "--until", "22:30").status == 0
    assert 0 < float(daemon.requests[-1].query["for"]) <= 25 * 3600


def test_json_is_the_outcome(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST yield"] = events({"event": "progress", "models": []}, outcome())
    result = ctl("yield", "--json")
    assert json.loads(result.out) == outcome()
    assert not result.err


def test_a_model_that_cannot_be_ended(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST yield"] = events(outcome(stuck=["embed"]))
    result = ctl("yield")
    assert result.status == 1
    assert "freed by qwen)" in result.out
    assert "! embed could not be stopped" in result.out


def test_somebody_resumes_meanwhile(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST yield"] = events({"event": "resumed", "elapsed": 0.5})
    result = ctl("yield")
    assert (result.status, "may use the memory again" in result.out) == (1, True)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--for", "long"], "--for: expected a duration"),
        (["--for", "0"], "longer than zero"),
        (["--until", "25:00"], "not a time of day"),
        (["--until", "10:00", "--for", "1h"], "not allowed with"),
    ],
)
def test_wrong_usage(ctl: Ctl, argv: list[str], complaint: str) -> None:
    result = ctl("yield", *argv)
    assert (result.status, complaint in result.err) == (2, True), result.err


def test_an_error_of_the_daemon(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST yield"] = error(503, "shutting_down", "accelerd is shutting down")
    assert ctl("yield").status == 3


def test_resume_says_what_comes_back(ctl: Ctl, daemon: FakeDaemon) -> None:
    answer = {"resumed": True, "what": "the GPU", "why": "gamemode: 1 game", "back": ["qwen", "embed"]}
    daemon.answers["POST resume"] = Reply(answer)
    assert ctl("resume").out == "models may use the GPU again; loading again: qwen, embed\n"
    assert json.loads(ctl("resume", "--json").out) == answer
    daemon.answers["POST resume"] = Reply(answer | {"back": []})
    assert "loaded on the next request" in ctl("resume").out


def test_resume_without_a_yield(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST resume"] = Reply({"resumed": False, "what": None, "why": None, "back": []})
    result = ctl("resume")
    assert (result.status, result.out) == (0, "nothing was yielded\n")


def test_status_says_who_has_the_gpu(ctl: Ctl, daemon: FakeDaemon) -> None:
    report = {"what": "the GPU", "pools": ["x"], "remaining": None, "why": "gamemode: 1 game\x1b[31m", "holds": []}
    daemon.answers["GET status"] = Reply(status(*FLEET, yielded=report))
    assert "the GPU is yielded (gamemode: 1 game\\x1b[31m)" in ctl("status").out
    daemon.answers["GET status"] = Reply(status(*FLEET, yielded=report | {"remaining": 60.0}))
    assert "the GPU is yielded until " in ctl("status").out
    daemon.answers["GET status"] = Reply(status(*FLEET, yielded=None))
    assert "yielded" not in ctl("status").out


# --- times of day ---------------------------------------------------------------------------------------------

EVENING = datetime(2026, 5, 4, 21, 40, 30)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("22:30", 49 * 60 + 30), ("21:41", 30), ("21:40", 86400 - 30), ("9:05", 11 * 3600 + 24 * 60 + 30)],
)
def test_seconds_until(text: str, seconds: float) -> None:
    assert seconds_until(text, EVENING) == seconds


@pytest.mark.parametrize("text", ["", "24:00", "12", "12:60", "noon", "12:30:00"])
def test_what_is_no_time_of_day(text: str) -> None:
    with pytest.raises(Failure):
        seconds_until(text, EVENING)


def test_time_in() -> None:
    assert time_in(60, EVENING) == "21:41"
    assert time_in(4 * 3600, EVENING) == "01:40 on 2026-05-05"
