"""accelctl load, unload and reset."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from accelerd.cli.connect import DaemonClient
from accelerd.cli.progress import amount, fraction

from .conftest import Ctl
from .fake_daemon import FAILED, FLEET, FakeDaemon, Reply, error, events, status

STEP = {"event": "progress", "state": "starting", "elapsed": 1.0, "expected": 4.0, "memory": 1 << 30,
        "memory_expected": 5 << 30, "line": "load_tensors: \x1b[2J"}  # fmt: skip
READY = {"event": "ready", "model": "embed", "elapsed": 8.1, "memory_used": 5 << 30}


def test_load_shows_progress_as_plain_lines(ctl: Ctl, daemon: FakeDaemon) -> None:
    queued = {"event": "progress", "state": "queued", "elapsed": 0.2}
    late = STEP | {"elapsed": 7.0, "line": "warming up"}
    daemon.answers["POST load"] = events(queued, STEP, STEP | {"elapsed": 1.2}, late, READY)
    result = ctl("load", "embed")
    assert result.status == 0
    assert result.out.startswith("embed is ready (")
    assert "5.0 GiB" in result.out
    lines = result.err.splitlines()
    assert [line.split(" (")[0] for line in lines] == ["embed: waiting for memory", "embed: loading", "embed: loading"]
    assert "1.0 GiB of 5.0 GiB" in lines[1]
    assert "\\x1b[2J" in lines[1]
    assert "warming up" in lines[2]
    assert daemon.requests[0].query == {"model": "embed"}


def test_a_load_shows_the_download_that_it_waits_for(ctl: Ctl, daemon: FakeDaemon) -> None:
    at = {"bytes": 1 << 30, "total": 8 << 30, "rate": 80e6, "remaining": 120.0, "file": "m-Q4_K_M.gguf", "reason": ""}
    waiting = {"event": "progress", "state": "downloading", "elapsed": 14.0, "memory": None, "line": "", "download": at}
    daemon.answers["POST load"] = events(waiting, STEP, READY)
    lines = ctl("load", "embed").err.splitlines()
    wanted = (
        "embed: downloading the model (14 s; 1.0 GiB of 8.0 GiB, 76.3 MiB/s, 7.0 GiB and 2 min left; m-Q4_K_M.gguf)"
    )
    assert lines[0] == wanted


def test_load_draws_a_bar_on_a_terminal(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST load"] = events(STEP, STEP, READY)
    result = ctl("load", "embed", tty=True)
    assert result.status == 0
    assert "━" in result.err
    assert "\x1b[2J" not in result.err
    assert "ready" in result.out


def test_load_as_json_is_one_object(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST load"] = events(STEP, READY)
    result = ctl("load", "embed", "--json")
    value = json.loads(result.out)
    assert value["event"] == "ready"
    assert value["model"] == "embed"
    assert value["seconds"] >= 0
    assert result.err == ""


def test_failed_load_prints_the_engines_last_lines(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST load"] = events(STEP, {"event": "error", "error": {"code": "model_failed", **FAILED}})
    result = ctl("load", "broken")
    assert (result.status, result.out) == (1, "")
    lines = result.err.splitlines()[-3:]
    assert lines[0] == "  | llama_model_load: error loading model"
    assert "--bogus\\x1b[31m" in lines[1]
    assert lines[2].startswith("accelctl: llama-server exited with status 1")
    assert "accelctl logs broken" in lines[2]


def test_failed_load_as_json(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST load"] = events({"event": "error", "error": {"code": "model_failed", **FAILED}})
    result = ctl("load", "broken", "--json")
    assert result.status == 1
    problem = json.loads(result.out)["error"]
    assert problem["code"] == "model_failed"
    assert "accelctl logs" in problem["hint"]
    never_ran = {"code": "model_failed", "message": "cannot find the program"}
    daemon.answers["POST load"] = events({"event": "error", "error": never_ran})
    assert "accelctl logs" not in ctl("load", "broken").err, "there is no output"
    assert problem["tail"] == FAILED["tail"]


@pytest.mark.parametrize("command", ["load", "unload", "reset"])
@pytest.mark.parametrize(
    ("typed", "words"), [("embd", "did you mean embed?"), ("BIG", "did you mean big?"), ("zzz", "known models: ")]
)
def test_mistyped_names(ctl: Ctl, daemon: FakeDaemon, command: str, typed: str, words: str) -> None:
    daemon.answers[f"POST {command}"] = error(404, "model_not_found", "cannot find it")
    result = ctl(command, typed)
    assert result.status == 5
    assert words in result.err


def test_name_found_wrong_only_in_the_event(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST unload"] = events({"event": "error", "error": {"code": "model_not_found", "message": "no"}})
    assert ctl("unload", "embd").status == 5


def test_a_guess_of_the_daemon_is_not_doubled(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST load"] = error(404, "model_not_found", "cannot find embd; did you mean 'embed'?")
    assert ctl("load", "embd").err.count("did you mean") == 1


def test_unload_waits_and_forces(ctl: Ctl, daemon: FakeDaemon) -> None:
    draining = {"event": "progress", "state": "draining", "elapsed": 0.5}
    daemon.answers["POST unload"] = events(draining, {"event": "stopped"})
    result = ctl("unload", "embed")
    assert result.status == 0
    assert "embed is stopped" in result.out
    assert "waiting for running requests" in result.err
    assert ctl("unload", "embed", "--force", "--json").status == 0
    assert [request.query for request in daemon.requests] == [{"model": "embed"}, {"model": "embed", "force": "1"}]


def test_unload_that_fails(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST unload"] = events(
        {"event": "error", "error": {"code": "internal", "message": "cannot stop it"}}
    )
    result = ctl("unload", "embed")
    assert (result.status, result.err) == (1, "accelctl: cannot stop it\n")


@pytest.mark.parametrize(
    ("command", "state", "left"),
    [
        ("load", "downloading", "; embed: its download goes on; to end that: accelctl unload embed"),
        ("load", "starting", "; embed: it goes on loading; to end that: accelctl unload embed"),
        ("load", "queued", ""),
        ("unload", "starting", ""),
        ("download", "", "; what has arrived is kept, and the next download goes on there"),
    ],
)
def test_ctrl_c_says_what_goes_on(
    ctl: Ctl, monkeypatch: pytest.MonkeyPatch, command: str, state: str, left: str
) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[dict[str, Any]]:
        yield {"event": "progress", "elapsed": 1.0} | ({"state": state} if state else {"bytes": 5})
        raise KeyboardInterrupt

    monkeypatch.setattr(DaemonClient, "events", interrupted)
    result = ctl(command, "embed")
    assert (result.status, result.err.splitlines()[-1]) == (130, f"interrupted{left}")


def test_a_name_is_listed_once(ctl: Ctl, daemon: FakeDaemon) -> None:
    status = {"models": [{"name": "a", "aliases": ["a", "b", "b*"], "prefixed": "local/a", "state": "stopped"}]}
    daemon.answers["GET status"] = Reply(status)
    daemon.answers["POST load"] = error(404, "model_not_found", "cannot find it")
    assert ctl("load", "zzz").err.rstrip().endswith("known models: a, b, local/a")
    assert ctl("load", "*").err.rstrip().endswith("known models: a, b, local/a")


@pytest.mark.parametrize("state", ["downloading", "starting", "reclaiming", "ready"])
def test_reset_of_what_had_not_failed(ctl: Ctl, daemon: FakeDaemon, state: str) -> None:
    daemon.answers["POST reset"] = Reply({"state": state})
    assert ctl("reset", "broken").out == f"broken is {state}; it had no failures to clear\n"


def test_reset(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST reset"] = Reply({"state": "stopped"})
    assert "accelctl load broken" in ctl("reset", "broken").out
    assert json.loads(ctl("reset", "broken", "--json").out) == {"model": "broken", "state": "stopped"}
    daemon.answers["POST reset"] = Reply({"state": "ready"})
    assert ctl("reset", "embed").out == "embed is ready; it had no failures to clear\n"


def test_a_route_is_no_model_to_load(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET status"] = Reply(status(*FLEET, routes=[{"name": "assistant", "models": ["embed", "broken"]}]))
    daemon.answers["POST load"] = error(404, "model_not_found", "no model is called assistant")
    result = ctl("load", "assistant")
    assert result.status == 5
    assert result.err == "accelctl: assistant is a route, not a model; its models: embed, broken\n"


def test_fraction_never_says_done_before_it_is() -> None:
    assert fraction(STEP) == 0.25
    assert fraction(STEP | {"elapsed": 9.0}) == 0.99
    assert fraction({"state": "starting", "elapsed": 1.0, "expected": None}) is None
    assert fraction(STEP | {"state": "queued"}) is None
    assert amount({}) == ""
    assert amount({"memory": 1024}) == "1.0 KiB"


def test_several_models_are_loaded_one_after_the_other(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST load"] = events(STEP, READY)
    result = ctl("load", "embed", "big")
    assert [line.split(" (")[0] for line in result.out.splitlines()] == ["embed is ready", "big is ready"]
    assert [request.query for request in daemon.requests] == [{"model": "embed"}, {"model": "big"}]
    listed = json.loads(ctl("load", "embed", "big", "--json").out)["models"]
    assert [one["event"] for one in listed] == ["ready", "ready"]


@pytest.mark.parametrize("command", ["load", "unload"])
def test_one_of_several_that_fails_does_not_keep_the_others_from_their_turn(
    ctl: Ctl, daemon: FakeDaemon, command: str
) -> None:
    def answer(query: dict[str, str], body: bytes) -> Reply:
        return events(READY) if query["model"] == "embed" else error(404, "model_not_found", "cannot find it")

    daemon.answers[f"POST {command}"] = answer
    result = ctl(command, "bg", "embed")
    assert result.status == 5
    assert "did you mean big?" in result.err
    assert result.out.startswith(f"embed is {'ready' if command == 'load' else 'stopped'}")
    wrong, right = json.loads(ctl(command, "bg", "embed", "--json").out)["models"]
    assert (wrong["model"], wrong["error"]["code"]) == ("bg", "model_not_found")
    assert right["model"] == "embed"


def test_commands_that_are_to_be_copied_quote_names(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST reset"] = Reply({"state": "stopped"})
    assert "load it: accelctl load 'it'\"'\"'s [1m] 日本'" in ctl("reset", "it's [1m] 日本").out
    daemon.answers["GET status"] = Reply(status({**FLEET[3], "name": "a b"}))
    assert "(accelctl reset 'a b')" in ctl("status").out
    failed = {"code": "model_failed", "message": "no", "tail": ["cannot"]}
    daemon.answers["POST load"] = events({"event": "error", "error": failed})
    assert "accelctl logs 'a;b'" in ctl("load", "a;b").err
