"""accelctl toolbox list, refresh, pin and unpin."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from accelerd.cli.commands.toolbox import age

from .conftest import Ctl
from .fake_daemon import FakeDaemon, Reply, error, events

RADV = {
    "tag": "vulkan-radv", "name": "docker.io/kyuz0/amd-strix-halo-toolboxes:vulkan-radv",
    "toolbox": "llama-vulkan-radv", "backend": "vulkan", "args": ["-fa", "1", "--no-mmap"], "note": "most stable",
    "experimental": False,
}  # fmt: skip
OLD, NEW = "a" * 64, "b" * 64


def toolbox(name: str, **changes: Any) -> dict[str, Any]:
    """One toolbox, as docs/control.md shows it."""
    return {
        "name": name, "id": "c" * 64, "running": True, "created": ago(hours=3), "image": RADV["name"], "image_id": OLD,
        "newer": None, "build": "5412 (3a4b5c6)", "build_trouble": None, "pinned": None, "known": RADV, "models": [],
    } | changes  # fmt: skip


def ago(**span: float) -> str:
    return (datetime.now(UTC) - timedelta(**span)).strftime("%Y-%m-%dT%H:%M:%S.123456789Z")


def listing(*toolboxes: dict[str, Any], **changes: Any) -> Reply:
    known = [{**RADV, "here": True}, {**RADV, "tag": "x", "name": "y:x", "toolbox": "llama-x", "here": False,
             "experimental": True, "note": ""}]  # fmt: skip
    return Reply(
        {"toolboxes": list(toolboxes), "missing": [], "known": known, "refreshing": None, "trouble": None} | changes
    )


def test_list_is_a_table_with_remarks(ctl: Ctl, daemon: FakeDaemon) -> None:
    models = [{"name": "qwen", "state": "ready", "loaded": True}, {"name": "glm", "state": "stopped", "loaded": False}]
    daemon.answers["GET toolboxes"] = listing(
        toolbox("radv", models=models, newer=NEW),
        toolbox("mine", running=False, build=None, image="localhost/mine:1", known=None, pinned=OLD, newer=NEW),
        toolbox("odd", build=None, build_trouble="toolbox odd does not say: \x1b[31mgone", known=None, pinned=NEW),
    )
    result = ctl("toolbox", "list")
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].split() == ["TOOLBOX", "STATE", "LLAMA.CPP", "AGE", "IMAGE", "MODELS"]
    assert lines[1].startswith("radv     running          5412 (3a4b5c6)  3 h  ")
    assert lines[1].endswith("qwen (loaded), glm")
    assert "aaaaaaaaaaaa)" in result.out
    assert lines[2].split("  ")[0] == "mine"
    assert "stopped, pinned  none" in lines[2]
    assert "  ?  " in lines[3]
    text = "\n".join(lines[4:])
    assert "! radv: vulkan-radv: most stable" in text
    assert "! radv: a newer image has been pulled (bbbbbbbbbbbb)\n  → accelctl toolbox refresh radv" in text
    assert "mine: a newer image" not in text, "it is pinned"
    assert "odd does not say: \\x1b[31mgone" in text
    assert (
        "! odd: pinned to bbbbbbbbbbbb, but created again by hand from another image\n  → accelctl toolbox pin odd"
        in text
    )


def test_list_names_what_models_want_and_is_not_there(ctl: Ctl, daemon: FakeDaemon) -> None:
    missing = [{"name": "llama-x", "models": [{"name": "qwen", "state": "failed", "loaded": False}]},
               {"name": "other", "models": [{"name": "glm", "state": "failed", "loaded": False}]}]  # fmt: skip
    daemon.answers["GET toolboxes"] = listing(missing=missing, refreshing="radv", trouble="a refresh was interrupted")
    result = ctl("toolbox", "list")
    assert "No toolboxes" in result.out
    assert (
        "llama-x: there is no such toolbox, but qwen should run in it\n  → toolbox create --image y:x llama-x"
        in result.out
    )
    assert "toolbox create --image IMAGE other" in result.out
    assert "radv is being refreshed now" in result.out
    assert "a refresh was interrupted" in result.out


def test_list_known_shows_all_images(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET toolboxes"] = listing(toolbox("radv"))
    plain, known = ctl("toolbox", "list"), ctl("toolbox", "list", "--known")
    assert "y:x" not in plain.out
    assert "y:x" in known.out
    assert "experimental" in known.out
    assert "-fa 1 --no-mmap" in known.out


def test_list_as_json_is_what_the_daemon_says(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET toolboxes"] = answer = listing(toolbox("radv"))
    result = ctl("toolbox", "list", "--json")
    assert json.loads(result.out) == answer.json


def test_age() -> None:
    assert age(ago(days=2, hours=4)) == "2 d 4 h"
    assert age("2026-11-21T03:56:56.612655335+01:00") != "-"
    assert (age(""), age("yesterday"), age("2026-11-21T03:56:56")) == ("-", "-", "-")
    assert age(ago(hours=-5)) == "0 s", "a clock that was put back"


# --- refresh --------------------------------------------------------------------------------------------------


def step(name: str, elapsed: float = 0.1, **more: Any) -> dict[str, Any]:
    return {"event": "progress", "step": name, "model": None, "line": "", "done": None, "total": None,
            "elapsed": elapsed} | more  # fmt: skip


REFRESHED = {
    "event": "refreshed", "toolbox": "radv", "image": RADV["name"], "image_id": NEW, "old_image_id": OLD,
    "build": "5500 (def)", "old_build": "5412 (abc)", "models": ["qwen", "glm"], "notes": [], "elapsed": 9.0,
}  # fmt: skip


def test_refresh_shows_each_step(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST toolbox/refresh"] = events(
        step("pull", line="Trying to pull …"), step("pull", 6.0, done=3 << 30, total=10 << 30), step("try"),
        step("swap"), step("drain", model="qwen"), step("load", model="qwen"), step("remove"), REFRESHED,
    )  # fmt: skip
    result = ctl("toolbox", "refresh", "radv")
    assert result.status == 0
    assert [line.split(" (")[0] for line in result.err.splitlines()] == [
        "radv: pulling the image", "radv: pulling the image", "radv: testing the new image",
        "radv: creating the new toolbox", "radv: waiting until qwen has stopped", "radv: loading qwen",
        "radv: removing the old toolbox",
    ]  # fmt: skip
    assert "3.0 GiB of 10.0 GiB" in result.err
    assert result.out.startswith("radv is refreshed: llama.cpp 5412 (abc) → 5500 (def), docker.io/kyuz0/")
    assert "moved: qwen, glm" in result.out
    assert daemon.requests[0].query == {"name": "radv"}


def test_refresh_draws_a_bar_on_a_terminal(ctl: Ctl, daemon: FakeDaemon) -> None:
    pull = step("pull", done=3 << 30, total=10 << 30)
    daemon.answers["POST toolbox/refresh"] = events(pull, pull, REFRESHED)
    result = ctl("toolbox", "refresh", "radv", tty=True)
    assert "━" in result.err
    assert "refreshed" in result.out


def test_refresh_with_force_and_notes(ctl: Ctl, daemon: FakeDaemon) -> None:
    note = "radv-old stays until sh (pid 7, pts/1) is gone: the next refresh removes it"
    last = REFRESHED | {"notes": [note], "build": None, "old_build": None, "models": []}
    daemon.answers["POST toolbox/refresh"] = events(last)
    result = ctl("toolbox", "refresh", "radv", "--force")
    assert daemon.requests[0].query == {"name": "radv", "force": "1"}
    assert f"! {note}" in result.out
    assert "llama.cpp none," in result.out


def test_refresh_of_what_is_up_to_date(ctl: Ctl, daemon: FakeDaemon) -> None:
    current = {"event": "current", "toolbox": "radv", "image": RADV["name"], "image_id": OLD}
    daemon.answers["POST toolbox/refresh"] = events(current)
    result = ctl("toolbox", "refresh", "radv")
    assert (result.status, result.out) == (0, f"radv is up to date: {RADV['name']} (aaaaaaaaaaaa)\n")


def test_refresh_as_json_is_one_object(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST toolbox/refresh"] = events(step("pull"), REFRESHED)
    result = ctl("toolbox", "refresh", "radv", "--json")
    assert json.loads(result.out)["build"] == "5500 (def)"
    assert result.err == ""


def test_refresh_that_was_undone_shows_what_the_engine_said(ctl: Ctl, daemon: FakeDaemon) -> None:
    message = "cannot refresh radv: cannot load qwen; the old one is in place as before"
    body = {"code": "toolbox_failed", "message": message, "tail": ["ggml_vulkan: \x1b[2Jno device"]}
    daemon.answers["POST toolbox/refresh"] = events(step("undo"), {"event": "error", "error": body})
    result = ctl("toolbox", "refresh", "radv")
    assert (result.status, result.out) == (1, "")
    assert "restoring the old toolbox" in result.err
    assert "  | ggml_vulkan: \\x1b[2Jno device" in result.err
    assert "the old one is in place as before" in result.err


@pytest.mark.parametrize(
    ("status", "code", "message", "exit"),
    [
        (404, "toolbox_not_found", "there is no toolbox called 'rdv'; did you mean radv?", 5),
        (409, "toolbox_pinned", "cannot refresh radv: it is pinned; accelctl toolbox unpin radv", 1),
        (409, "toolbox_busy", "cannot refresh radv: sh (pid 7, pts/1) is inside", 1),
        (503, "shutting_down", "accelerd is shutting down", 3),
    ],
)  # fmt: skip
def test_refusals(ctl: Ctl, daemon: FakeDaemon, status: int, code: str, message: str, exit: int) -> None:
    daemon.answers["POST toolbox/refresh"] = error(status, code, message)
    result = ctl("toolbox", "refresh", "radv")
    assert (result.status, result.err) == (exit, f"accelctl: {message}\n")


def test_refresh_whose_daemon_dies(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST toolbox/refresh"] = events(step("swap"), cut=True)
    assert ctl("toolbox", "refresh", "radv").status == 3


# --- pin ------------------------------------------------------------------------------------------------------


def test_pin_and_unpin(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET toolboxes"] = listing(toolbox("radv", image="i:1"))
    daemon.answers["POST toolbox/pin"] = Reply({"toolbox": "radv", "image": "i:1", "pinned": OLD})
    daemon.answers["POST toolbox/unpin"] = Reply({"toolbox": "radv", "was": OLD, "pinned": None})
    assert (
        ctl("toolbox", "pin", "radv").out
        == "radv stays at i:1 (aaaaaaaaaaaa); to change that: accelctl toolbox unpin radv\n"
    )
    assert ctl("toolbox", "unpin", "radv").out == "radv can be refreshed again\n"
    assert [r.query for r in daemon.requests if r.method == "POST"] == [{"name": "radv"}] * 2
    daemon.answers["POST toolbox/unpin"] = Reply({"toolbox": "radv", "was": None, "pinned": None})
    assert ctl("toolbox", "unpin", "radv").out == "radv was not pinned\n"
    assert json.loads(ctl("toolbox", "unpin", "radv", "--json").out)["was"] is None


def test_usage(ctl: Ctl) -> None:
    for argv in (("toolbox",), ("toolbox", "frob"), ("toolbox", "pin"), ("toolbox", "list", "x")):
        result = ctl(*argv)
        assert result.status == 2
        assert result.err.count("\n") == 1
