"""A whole accelerd with a model on the NPU beside others: who is where, and who makes room for whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.daemon.kit import QUICK
from tests.harness import Daemon, DaemonFactory, dummy_gguf, eventually, fake_model, streaming
from tests.npu.halo_daemon import NPU
from tests.npu.kit import FlmOnPath, flm_model

NAME = "npu/qwen3-4b"
MODULE = "tests.npu.halo_daemon"


@pytest.fixture
def flm(tmp_path: Path) -> FlmOnPath:
    return FlmOnPath(tmp_path).pulled("qwen3:4b", "llama3.2:1b")


def got(daemon: Daemon, route: str) -> Any:
    return daemon.control("GET", route).json()


def started(daemons: DaemonFactory, flm: FlmOnPath, tmp_path: Path, settings: str = "") -> Daemon:
    toml = QUICK + settings + flm_model(memory="64MiB") + fake_model("big", dummy_gguf(tmp_path), memory="64MiB")
    daemon = daemons.start(toml, env={"PATH": flm.path}, module=MODULE)
    eventually(lambda: any(one["kind"] == "npu" for one in got(daemon, "devices")["devices"]), "it has its devices")
    return daemon


def test_both_work_at_once_although_max_loaded_is_one_and_neither_ends_the_other(
    daemons: DaemonFactory, flm: FlmOnPath, tmp_path: Path
) -> None:
    daemon = started(daemons, flm, tmp_path, "max_loaded = 1\n")
    assert daemon.chat("big").status == 200
    big = daemon.status("big")["pid"]
    with streaming(daemon, NAME):
        assert daemon.chat("big").status == 200
    assert daemon.status("big")["pid"] == big, "it was not loaded again"
    npu = daemon.status(NAME)
    assert (npu["state"], npu["device"]) == ("ready", NPU)
    assert [(one["family"], one["kind"], one["contexts"], one["of"]) for one in npu["claims"]] == [
        ("flm", "llm", 1, 16)
    ]
    assert daemon.events("unload?model=big")[-1]["event"] == "stopped"
    assert daemon.status(NAME)["pid"] == npu["pid"]
    assert daemon.chat(NAME).status == 200


def test_every_report_tells_who_is_on_the_npu(daemons: DaemonFactory, flm: FlmOnPath, tmp_path: Path) -> None:
    daemon = started(daemons, flm, tmp_path)
    assert daemon.chat(NAME).status == 200
    (pool,) = (one for one in got(daemon, "memory")["pools"] if one["id"] == NPU)
    assert (pool["npu"]["contexts_used"], pool["npu"]["contexts"], pool["npu"]["columns"]) == (1, 16, 8)
    assert [one["model"] for one in pool["npu"]["models"]] == [NAME]
    (device,) = (one for one in got(daemon, "devices")["devices"] if one["kind"] == "npu")
    assert [one["model"] for one in device["npu"]["models"]] == [NAME]
    explained = got(daemon, f"explain?model={NAME}")
    assert explained["placement"]["devices"] == [NPU]
    assert [one["label"] for one in explained["placement"]["claims"]] == ["RyzenAI-npu5"]
    (option,) = got(daemon, f"fit?model={NAME}")["options"]
    assert [(one["device"], one["family"]) for one in option["claims"]] == [(NPU, "flm")]


def test_idle_models_make_room_for_the_other_kind_where_memory_is_short(
    daemons: DaemonFactory, flm: FlmOnPath, tmp_path: Path
) -> None:
    daemon = started(daemons, flm, tmp_path, 'memory = "100MiB"\n')
    for name, other in (("big", NAME), (NAME, "big"), ("big", NAME)):
        assert daemon.chat(name).status == 200
        assert (daemon.state(name), daemon.state(other)) == ("ready", "stopped")
    history = got(daemon, f"explain?model={NAME}")["history"]
    assert any("made room for big: it needs 64.0 MiB" in step["reason"] for step in history)
