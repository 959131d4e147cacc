"""accelctl devices: what a person sees, with a daemon and without one, once and all the time."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from accelerd.base.ports import Roots
from accelerd.cli.commands import devices
from accelerd.cli.connect import DaemonClient
from accelerd.cli.context import Context
from accelerd.cli.device_view import show
from accelerd.cli.output import CliOutput

from .conftest import Ctl, Stream
from .fake_daemon import FakeDaemon, Reply, error

GIB = 1 << 30
GPU: dict[str, Any] = {
    "id": "0000:c4:00.0", "kind": "gpu", "name": "AMD Radeon 8060S Graphics", "driver": "amdgpu", "gfx": "gfx1151",
    "slot": "0000:c4:00.0", "node": "/dev/dri/renderD128", "problem": None, "fix": None, "level_owner": "accelerd",
    "pools": [
        {"name": "vram", "total": 2 * GIB, "used": GIB}, {"name": "gtt", "total": 96 * GIB, "used": 47 * GIB},
        {"name": "visible vram", "total": 2 * GIB, "used": GIB},
        {"name": "unified", "total": 98 * GIB, "used": 49 * GIB},
    ],
    "holders": [
        {"pid": 4712, "process": "llama-server", "model": "qwen", "memory": {"gtt": 40 * GIB}, "total": 40 * GIB},
        *({"pid": pid, "process": "browser", "model": None, "memory": {}, "total": GIB} for pid in range(7)),
        {"pid": 99, "process": "idle", "model": None, "memory": {}, "total": 0},
    ],
    "others": 2 * GIB,
    "troubles": [{"message": "the GPU may use 62 of 125 GiB", "fix": "sudo grubby --args=ttm.pages_limit=1"}],
    "readings": {
        "asleep": False, "busy": 97.4, "power": 86.2, "temperature": 88.0, "level": "high",
        "throttling": ["temperature"],
        "clocks": {"sclk": {"now": 2712.0, "lowest": 600, "highest": 2900}, "mclk": {"now": 1000, "highest": 1000}},
        "dram_read": 40e9, "dram_write": 2.5e9, "stale": {"power": 3.0}, "reasons": {"level": "it is odd"},
    },
}  # fmt: skip
NPU: dict[str, Any] = {
    "id": "0000:c5:00.1", "kind": "npu", "name": "RyzenAI-npu5", "driver": "amdxdna", "slot": "0000:c5:00.1",
    "problem": "this user cannot open /dev/accel/accel0", "fix": "sudo udevadm trigger", "pools": [],
    "readings": {"asleep": False, "busy": 37.0, "clocks": {}}, "holders": [], "others": None, "troubles": [],
}  # fmt: skip
ASLEEP = {**GPU, "slot": "0000:03:00.0", "readings": {"asleep": True}, "holders": [], "others": None, "troubles": []}
ANSWER = {"devices": [GPU, NPU, ASLEEP], "degraded": None}


@pytest.fixture
def knowing(daemon: FakeDaemon) -> FakeDaemon:
    daemon.answers["GET devices"] = Reply(ANSWER)
    return daemon


def test_a_page(ctl: Ctl, knowing: FakeDaemon) -> None:
    text = ctl("devices").out
    lines = text.splitlines()
    assert lines[0].split() == ["DEVICE", "NAME", "DRIVER", "BUSY", "CLOCK", "POWER", "TEMP", "LEVEL"]
    assert "gpu c4:00.0" in lines[1]
    for word in ("amdgpu gfx1151", "97 %", "2712 of 2900 MHz", "~86 W", "88 °C", "high (accelerd)"):
        assert word in lines[1], word
    assert "37 %" in lines[2]
    assert "asleep" in lines[3]
    assert "  unified  ██████████░░░░░░░░░░  49.0 GiB of 98.0 GiB" in lines
    assert "visible vram" not in text
    assert any("qwen: llama-server (4712)" in line and line.endswith("40.0 GiB") for line in lines)
    assert any("2 more processes" in line and line.endswith("2.0 GiB") for line in lines)
    assert any("other programs and the system" in line and line.endswith("2.0 GiB") for line in lines)
    assert "idle" not in text
    assert "clocks are throttled by: temperature" in text
    assert "memory traffic: 40.0 GB/s read, 2.5 written" in text
    assert "level: it is odd" in text
    assert "    → sudo grubby --args=ttm.pages_limit=1" in lines
    assert "  ! this user cannot open /dev/accel/accel0" in lines
    assert "accelerd is not running" not in text


def test_json_is_the_daemons_answer(ctl: Ctl, knowing: FakeDaemon) -> None:
    assert json.loads(ctl("devices", "--json").out) == {"source": "daemon", **ANSWER}


@pytest.mark.parametrize("answer", [None, error(404, "not_found", "no route")])
def test_without_a_daemon_or_with_an_old_one_it_looks_itself(
    ctl: Ctl, request: pytest.FixtureRequest, answer: Reply | None
) -> None:
    if answer is not None:
        request.getfixturevalue("daemon").answers["GET devices"] = answer
    text = ctl("devices")
    assert text.status == 0
    assert text.out.startswith("accelerd is not running: read by accelctl")
    value = json.loads(ctl("devices", "--json").out)
    assert value["source"] == "direct"
    assert value["devices"][-1]["kind"] == "cpu"
    assert value["devices"][-1]["pools"][0]["used"] > 0


def test_another_failure_is_told(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET devices"] = error(500, "internal", "cannot read the devices: a driver does not answer")
    found = ctl("devices")
    assert (found.status, found.out) == (1, "")
    assert "a driver does not answer" in found.err


def test_a_device_of_which_nothing_is_known(tmp_path: Path) -> None:
    stream = Stream()
    out = CliOutput(stream, Stream(), {})
    show(out, {"devices": [{"kind": "gpu", "name": "x\x1b[31m"}, {}], "degraded": "changes are not noticed"})
    assert "\x1b" not in stream.getvalue()
    assert "! changes are not noticed" in stream.getvalue()


class Pauses:
    """So many seconds, then Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, seconds: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def context(ctl: Ctl, *, tty: bool = False, json_mode: bool = False) -> tuple[Context, io.StringIO]:
    stream = Stream(tty=tty)
    out = CliOutput(stream, Stream(), ctl.env, json_mode=json_mode)
    roots = Roots.from_env(ctl.env)
    return Context(roots, DaemonClient(ctl.socket), out, Stream(), ctl.env), stream


def test_watching_draws_the_page_again_until_ctrl_c(ctl: Ctl, knowing: FakeDaemon) -> None:
    for tty in (True, False):
        here, stream = context(ctl, tty=tty)
        assert devices.asked(here).watch(Pauses(3)) == 0
        assert stream.getvalue().count("gpu c4:00.0") >= 3
        assert ("\x1b[?1049h" in stream.getvalue()) is tty, "the terminal's other screen, and back"
        assert ("\x1b[?1049l" in stream.getvalue()) is tty
    assert len(knowing.requests) == 6


def test_watching_for_programs_is_a_line_a_second(ctl: Ctl, knowing: FakeDaemon) -> None:
    here, stream = context(ctl, json_mode=True)
    assert devices.asked(here).watch(Pauses(2)) == 0
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["source"] for line in lines] == ["daemon", "daemon"]


def test_a_daemon_that_goes_while_it_is_watched(ctl: Ctl, short: Path) -> None:
    here, _ = context(ctl, json_mode=True)
    with FakeDaemon(short / "s", {"GET devices": Reply(ANSWER)}).serve():
        page = devices.asked(here)
        assert page.ask()["source"] == "daemon"
    assert page.ask()["source"] == "direct"
