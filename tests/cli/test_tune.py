"""accelctl tune: the table, the question, the drop-in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .conftest import Ctl
from .fake_daemon import FakeDaemon, Reply, error, events

OWN = '[models.qwen]\npath = "/models/qwen.gguf"\nubatch = 512\n'


def row(label: str, prompt: float, answer: float, **more: Any) -> dict[str, Any]:
    series = [{"median": value, "spread": 3.0, "values": [value]} for value in (prompt, answer)]
    return {
        "label": label, "settings": {}, "prompt": series[0], "generation": series[1], "seconds": 2.5, "failed": None,
        "disturbed": False, "best": False,
    } | more  # fmt: skip


NOW, BEST = row("as it is now", 500, 40.5), row("ubatch 256", 812, 41.2, best=True, seconds=1.25)
NOTHING = {"prompt": None, "generation": None, "seconds": None, "failed": "it exited: no \x1b[31m"}
BROKEN = row("flash_attention off", 1, 1) | NOTHING
DONE = {
    "event": "done", "model": "qwen", "device": "AMD Radeon 8060S (gfx1151)", "program": "llama-server 5412, radv",
    "load": {"prompt": 1024, "answer": 64, "repeats": 3}, "rows": [NOW, BEST, BROKEN],
    "settings": {"ubatch": 256, "batch": 512}, "replaces": ["ubatch = 512 (model (accelerd.toml:3))"],
}  # fmt: skip


@pytest.fixture
def measured(daemon: FakeDaemon, ctl: Ctl) -> FakeDaemon:
    ctl.configure(OWN)
    steps: list[dict[str, Any]] = [
        {"event": "progress", "elapsed": 0.1, "phase": "loading", "label": "as it is now"},
        {"event": "progress", "elapsed": 0.2},
        {"event": "progress", "elapsed": 0.3, "phase": "measuring", "label": "as it is now", "repeat": 2, "repeats": 3},
        *({"event": "progress", "elapsed": 1.0, "row": one} for one in (NOW, BEST, BROKEN)),
        DONE,
    ]
    daemon.answers["POST tune"] = events(*steps)
    daemon.answers["POST reload"] = Reply({"updated": ["qwen"]})
    return daemon


def dropin(ctl: Ctl) -> str:
    return (ctl.config_file.parent / "accelerd.toml.d/zz-tune-qwen.toml").read_text()


def test_the_table_and_what_to_do(ctl: Ctl, measured: FakeDaemon) -> None:
    result = ctl("tune", "qwen")
    assert result.status == 0
    lines = result.out.splitlines()
    assert lines[0] == "qwen on AMD Radeon 8060S (gfx1151) with llama-server 5412, radv:"
    assert any(line.startswith("ubatch 256") and "812 ± 3" in line and line.endswith("best") for line in lines)
    assert any("failed: it exited: no \\x1b[31m" in line for line in lines)
    assert "takes the place of your own ubatch = 512 (model (accelerd.toml:3))" in " ".join(result.out.split())
    assert lines[-1] == "nothing was written; to save the settings: accelctl tune qwen --yes"
    assert "qwen: measuring: as it is now (2 of 3)" in result.err
    assert not (ctl.config_file.parent / "accelerd.toml.d").exists()


def test_yes_writes_a_drop_in_with_the_numbers(ctl: Ctl, measured: FakeDaemon) -> None:
    result = ctl("tune", "qwen", "--yes", "--quick")
    assert result.out.splitlines()[-1].startswith("written to ")
    text = dropin(ctl)
    assert "[models.qwen]\nubatch = 256\nbatch = 512\n" in text
    assert "# ubatch 256  812 ± 3  41.2 ± 3.0" in text
    assert "# Measured by accelctl tune on AMD Radeon 8060S (gfx1151) with llama-server 5412, radv:" in text
    assert "\x1b" not in text
    assert any("reload" in str(request) for request in measured.requests)
    shown = json.loads(ctl("config", "show", "--json").out)
    assert "256" in json.dumps(shown)
    assert ctl("tune", "qwen", "--yes").status == 0, "it may be written again"


def test_remove_takes_it_along(ctl: Ctl, measured: FakeDaemon) -> None:
    ctl.configure("")
    folder = ctl.config_file.parent / "accelerd.toml.d"
    folder.mkdir(mode=0o700)
    (folder / "qwen.toml").write_text(f"# Written by accelctl\n{OWN}")
    assert ctl("tune", "qwen", "--yes").status == 0
    assert ctl("remove", "qwen").status == 0
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("answer", "written"), [("\n", True), ("y\n", True), ("n\n", False), ("", False)])
def test_on_a_terminal_it_asks(ctl: Ctl, measured: FakeDaemon, answer: str, written: bool) -> None:
    result = ctl("tune", "qwen", tty=True, stdin=answer, NO_COLOR="1")
    assert "Write this for qwen? [Y/n]" in result.out
    assert (ctl.config_file.parent / "accelerd.toml.d/zz-tune-qwen.toml").exists() is written


def test_nothing_better_asks_nothing(ctl: Ctl, measured: FakeDaemon) -> None:
    measured.answers["POST tune"] = events(DONE | {"settings": {}, "replaces": []})
    result = ctl("tune", "qwen", "--yes")
    assert "Nothing that was tried is faster" in result.out
    assert not (ctl.config_file.parent / "accelerd.toml.d").exists()


def test_json_is_the_outcome(ctl: Ctl, measured: FakeDaemon) -> None:
    found = json.loads(ctl("tune", "qwen", "--json").out)
    assert found == {**DONE, "file": None}


def test_busy_and_unknown_models(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST tune"] = events({"event": "error", "error": {"code": "busy", "message": "cannot measure now"}})
    assert "cannot measure now" in ctl("tune", "qwen").err
    daemon.answers["POST tune"] = error(404, "model_not_found", "cannot find model 'gemm'")
    result = ctl("tune", "gemm")
    assert result.status == 5
    assert "there is no model 'gemm'" in result.err
