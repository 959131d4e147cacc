"""accelctl status and models."""

from __future__ import annotations

import json
import re
import socket
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from accelerd import __version__
from accelerd.cli.commands.status import telling
from accelerd.cli.live_page import LivePage

from .conftest import Ctl
from .fake_daemon import FLEET, FakeDaemon, Reply, model, status


def row(text: str, name: str) -> list[str]:
    """The cells of a model's row."""
    line = next(line for line in text.splitlines() if line.startswith(name))
    return re.split(r"\s{2,}", line)


def test_header_has_the_totals(ctl: Ctl, daemon: FakeDaemon) -> None:
    head = ctl("status").out.splitlines()[0]
    assert head.startswith(f"accelerd {__version__}")
    for part in ("up 1 h 33 min", "2 of 6 loaded", "8.0 of 20.0 GiB", "3 waiting"):
        assert part in head, "memory is the sum of the rows"


def test_what_another_machine_has_is_not_loaded_here(ctl: Ctl, daemon: FakeDaemon) -> None:
    far = [
        model("far", "ready", engine="remote", device="remote mac", memory=0),
        model("lost", "failed", engine="remote", device="remote mac"),
    ]
    daemon.answers["GET status"] = Reply(status(*FLEET, *far))
    text = ctl("status").out
    assert "2 of 6 loaded · 2 elsewhere · 8.0 of 20.0 GiB" in text.splitlines()[0]
    assert [row(text, name)[1] for name in ("far", "lost")] == ["elsewhere", "failed"]


def test_the_addresses_for_clients(ctl: Ctl, daemon: FakeDaemon) -> None:
    assert ctl("status").out.splitlines()[1] == "for clients: http://localhost:4000/v1"
    listen = ["127.0.0.1:4001", "[::1]:4001", "192.168.1.5:80", "[fd00::1]:80"]
    daemon.answers["GET status"] = Reply(status(*FLEET, listen=listen))
    line = "for clients: http://localhost:4001/v1, http://192.168.1.5:80/v1, http://[fd00::1]:80/v1"
    assert ctl("status").out.splitlines()[1] == line


@pytest.mark.parametrize(
    ("listen", "wanted"),
    [
        (["0.0.0.0:4000"], ["localhost", "192.168.7.5", "10.1.2.3"]),
        (["[::]:4000"], ["localhost", "[fd00::7]"]),
        (["0.0.0.0:4000", "[::]:4000", "127.0.0.1:4000"], ["localhost", "192.168.7.5", "10.1.2.3", "[fd00::7]"]),
    ],
)
def test_a_listener_on_all_addresses_is_shown_by_addresses_that_clients_can_use(
    ctl: Ctl, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, listen: list[str], wanted: list[str]
) -> None:
    def address(family: int, text: str) -> Any:
        return SimpleNamespace(family=family, address=text)

    cards = {
        "lo": [address(socket.AF_INET, "127.0.0.1"), address(socket.AF_INET6, "::1")],
        "eth0": [address(socket.AF_INET, "192.168.7.5"), address(socket.AF_INET6, "fe80::1%eth0"),
                 address(socket.AF_PACKET, "02:00:00:00:00:01")],
        "wg0": [address(socket.AF_INET, "10.1.2.3"), address(socket.AF_INET6, "fd00::7")],
    }  # fmt: skip
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: cards)
    daemon.answers["GET status"] = Reply(status(*FLEET, listen=listen))
    line = ctl("status").out.splitlines()[1]
    assert line == "for clients: " + ", ".join(f"http://{host}:4000/v1" for host in wanted)


def test_downloads_that_no_model_shows_are_shown(ctl: Ctl, daemon: FakeDaemon) -> None:
    step = {"event": "progress", "source": "org/repo:Q4_K_M", "file": "repo-Q4_K_M.gguf", "bytes": 1 << 30,
            "total": 8 << 30, "rate": 80e6, "remaining": 120.0, "reason": "", "elapsed": 9.0}  # fmt: skip
    wanted = "downloading org/repo:Q4_K_M: 1.0 GiB of 8.0 GiB, 76.3 MiB/s, 7.0 GiB and 2 min left, repo-Q4_K_M.gguf"
    for models in ((), FLEET):
        daemon.answers["GET status"] = Reply(status(*models, downloads=[step]))
        assert wanted in ctl("status").out
    loading = model("a", "downloading", download={"bytes": 1, "total": 2, "file": "repo-Q4_K_M.gguf"})
    daemon.answers["GET status"] = Reply(status(loading, downloads=[step]))
    assert "org/repo" not in ctl("status").out, "the row of the model says it"
    unnamed = model("a", "downloading", download={"bytes": 1, "total": 2, "rate": 0.0, "remaining": None})
    daemon.answers["GET status"] = Reply(status(unnamed, downloads=[step]))
    assert wanted in ctl("status").out, "an older daemon does not say which file the row is about"


def test_the_totals_of_all_models_are_not_those_of_one(ctl: Ctl, daemon: FakeDaemon) -> None:
    head = ctl("status", "embed").out.splitlines()[0]
    assert head == f"accelerd {__version__} · up 1 h 33 min"


def test_watch_asks_again_until_it_is_interrupted(
    ctl: Ctl, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        daemon.answers["GET status"] = Reply(status(model("embed", "ready")))
        if len(pauses) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(LivePage.watch, "__defaults__", (pause,))
    result = ctl("status", "embed", "--watch")
    assert result.status == 0
    assert re.findall("embed +(starting|ready)", result.out) == ["starting", "ready"]
    daemon.answers["GET status"] = Reply(status(*FLEET))
    pauses.clear()
    states = [
        json.loads(line)["models"][0]["state"]
        for line in ctl("status", "embed", "--watch", "--json").out.split("\n")[:2]
    ]
    assert states == ["starting", "ready"]
    assert ctl("status", "nobody", "--watch").status == 5


def test_a_model_whose_files_are_on_their_way_says_how_far(ctl: Ctl, daemon: FakeDaemon) -> None:
    at = {"bytes": 1 << 30, "total": 8 << 30, "rate": 8e7, "remaining": 120.0, "file": "m.gguf", "reason": ""}
    daemon.answers["GET status"] = Reply(status(model("a", "downloading", download=at, queue=2)))
    assert row(ctl("status").out, "a ") == ["a", "downloading", "-", "-", "12 %, 2 min left", "2"]
    daemon.answers["GET status"] = Reply(
        status(model("a", "downloading", download=at | {"total": 0, "remaining": None}))
    )
    assert row(ctl("status").out, "a ")[4] == "1.0 GiB"


def test_a_daemon_that_stops_says_so(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET status"] = Reply(status(*FLEET, state="stopping"))
    assert "· stopping ·" in ctl("status").out


def test_rows(ctl: Ctl, daemon: FakeDaemon) -> None:
    text = ctl("status").out
    assert row(text, "MODEL") == ["MODEL", "STATE", "MEMORY", "DEVICE", "IDLE", "QUEUE"]
    assert row(text, "qwen3") == ["qwen3-30b-a3b (pinned)", "ready", "4.7 GiB", "gpu", "1 request", "0"]
    assert row(text, "gemma") == ["gemma-3-4b-it", "ready¹", "3.0 GiB", "gpu", "3 min of 10 min", "0"]
    assert row(text, "embed") == ["embed", "starting", "~300 MiB", "cpu", "-", "3"]
    assert row(text, "broken")[1:3] == ["failed²", "-"]
    assert row(text, "flaky")[4] == "retry in 8.4 s"


def test_failures_are_footnotes_with_reason_and_remedy(ctl: Ctl, daemon: FakeDaemon) -> None:
    text = ctl("status").out
    assert "¹ gemma-3-4b-it: its configuration has changed" in text
    note = " ".join(text[text.index("² broken") :].split())
    assert note.startswith("² broken: llama-server exited with status 1 after 0.4 s")
    assert "error loading model" in note
    assert "accelctl reset broken" in note
    assert "accelctl logs flaky" in note


@pytest.mark.parametrize("cause", ["no-program", "no-model", "not-downloaded", "refused"])
def test_a_failure_that_no_reset_ends_says_what_comes_first(ctl: Ctl, daemon: FakeDaemon, cause: str) -> None:
    wrong = {"message": "cannot find the program x: it is not on PATH", "cause": cause, "tail": []}
    daemon.answers["GET status"] = Reply(status(model("m", "failed", error=wrong)))
    text = " ".join(ctl("status").out.split())
    assert "not on PATH (once that is put right: accelctl reset m)" in text
    daemon.answers["GET status"] = Reply(status(model("m", "failed", error={**wrong, "cause": "exited"})))
    assert "not on PATH (accelctl reset m)" in " ".join(ctl("status").out.split())


def test_power_that_is_saved_is_said(ctl: Ctl, daemon: FakeDaemon) -> None:
    assert "power is saved" not in ctl("status").out
    daemon.answers["GET status"] = Reply({**status(model("m", "ready")), "desktop": {"saving": "on battery"}})
    assert "saving power (on battery): models are loaded only on request" in ctl("status").out
    daemon.answers["GET status"] = Reply({**status(model("m", "ready")), "desktop": {"saving": None}})
    assert "power is saved" not in ctl("status").out


def test_memory_that_is_not_back_is_a_footnote(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET status"] = Reply(status(model("m", "reclaiming", residue=3 << 30)))
    assert "¹ m: 3.0 GiB of its memory was not released by the device" in " ".join(ctl("status").out.split())


def test_what_cannot_be_killed_is_a_footnote(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET status"] = Reply(status(model("m", "killing", reason="does not end, 30 s after SIGKILL")))
    assert "¹ m: does not end, 30 s after SIGKILL" in ctl("status").out


def test_the_line_that_names_the_cause() -> None:
    tail = (
        "0.00.015.801 I srv  load_model: loading",
        "0.00.015.909 E gguf_init: bad magic",
        "0.00.016.745 E srv  exiting",
    )
    assert telling(tail) == "gguf_init: bad magic"
    assert telling(("CUDA error: out of memory", "aborted")) == "CUDA error: out of memory"
    assert telling(("one", "two ")) == "two"
    assert telling(()) == ""


def test_what_an_engine_printed_never_reaches_the_terminal_raw(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET status"] = Reply(status(model("m", "failed", error={"message": "x", "tail": ["\x1b[31mred"]})))
    text = ctl("status", tty=True, NO_COLOR="1").out
    assert "\x1b" not in text
    assert "\\x1b[31mred" in text


def test_rows_fit_80_columns_on_a_terminal(ctl: Ctl, daemon: FakeDaemon) -> None:
    text = ctl("status", tty=True, NO_COLOR="1").out
    assert max(map(len, text.splitlines())) <= 80
    assert "…" in text


def test_colour_only_on_a_terminal_that_wants_it(ctl: Ctl, daemon: FakeDaemon) -> None:
    assert "\x1b[32m" in ctl("status", tty=True).out
    for plain in (ctl("status"), ctl("status", tty=True, NO_COLOR="1"), ctl("status", tty=True, TERM="dumb")):
        assert "\x1b" not in plain.out


def test_no_models_says_how_to_add_one(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET status"] = Reply(status())
    for command in ("status", "models"):
        assert "accelctl add" in ctl(command).out


def test_problems_of_the_configuration_on_disk_are_told(ctl: Ctl, daemon: FakeDaemon) -> None:
    problem = {"file": "accelerd.toml", "line": 3, "key": "x", "message": "unknown"}
    daemon.answers["GET status"] = Reply(status(*FLEET, config={"files": [], "problems": [problem]}))
    assert "the configuration on disk has 1 error and is not in use: accelctl config check" in ctl("status").out


def test_a_configuration_with_warnings_is_in_use(ctl: Ctl, daemon: FakeDaemon) -> None:
    warning = {"file": "accelerd.toml", "line": 3, "key": "x", "message": "odd", "severity": "warning"}
    daemon.answers["GET status"] = Reply(status(*FLEET, config={"files": [], "problems": [warning, warning]}))
    text = ctl("status").out
    assert "the configuration has 2 warnings: accelctl config check" in text
    assert "not in use" not in text


def test_one_model_by_name_or_alias(ctl: Ctl, daemon: FakeDaemon) -> None:
    for name in ("qwen3-30b-a3b", "big"):
        found = json.loads(ctl("status", name, "--json").out)["models"]
        assert [m["name"] for m in found] == ["qwen3-30b-a3b"]
    wrong = ctl("status", "gema-3-4b-it")
    assert (wrong.status, wrong.out) == (5, "")
    assert "did you mean gemma-3-4b-it?" in wrong.err


def test_json_is_the_daemons_own_answer(ctl: Ctl, daemon: FakeDaemon) -> None:
    assert json.loads(ctl("status", "--json").out) == status(*FLEET)
    assert json.loads(ctl("models", "--json").out) == list(FLEET)


def test_unknown_fields_and_missing_ones_do_no_harm(ctl: Ctl, daemon: FakeDaemon) -> None:
    sparse = {"name": "m", "state": "ready", "surprise": 1}
    daemon.answers["GET status"] = Reply({"version": "1.0", "models": [sparse], "surprise": 2})
    assert row(ctl("status").out, "m")[:2] == ["m", "ready"]
    assert row(ctl("models").out, "m")[:2] == ["m", "ready"]


def test_models_lists_names_and_how_long_they_are_kept(ctl: Ctl, daemon: FakeDaemon) -> None:
    text = ctl("models").out
    assert row(text, "qwen3") == ["qwen3-30b-a3b", "ready", "5.0 GiB", "always", "llama-server", "big"]
    assert row(text, "embed")[3] == "10 min idle, preloaded"


def test_model_names_with_wide_characters_keep_the_columns(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET status"] = Reply(status(model("日本語"), model("latin")))
    lines = ctl("status").out.splitlines()
    wide, latin = (next(line for line in lines if line.startswith(name)) for name in ("日本語", "latin"))
    assert wide.index("stopped") + 3 == latin.index("stopped")


def test_a_level_that_is_not_as_it_should_be_is_told(ctl: Ctl, daemon: FakeDaemon) -> None:
    entry = {
        "slot": "0000:c1:00.0", "name": "Radeon 8060S", "policy": "busy", "state": "raised", "reason": "in use",
        "level": "high", "by": "the helper", "stuck": False,
    }  # fmt: skip
    daemon.answers["GET status"] = Reply({**status(model("m", "ready")), "performance": [entry]})
    assert "Radeon" not in ctl("status").out, "all is well"
    odd = {**entry, "state": "yielded", "reason": "tuned has set it to auto again and again", "stuck": True}
    daemon.answers["GET status"] = Reply({**status(model("m", "ready")), "performance": [odd]})
    text = " ".join(ctl("status").out.split())
    assert "! Radeon 8060S: its clock is stuck low" in text
    assert "! Radeon 8060S is not at its highest clocks: tuned has set it to auto again and again" in text
