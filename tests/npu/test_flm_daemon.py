"""A whole accelerd with flm on its PATH: from the request to the answer, and what happens when the model fails."""

from __future__ import annotations

from pathlib import Path

from tests.harness import DaemonFactory
from tests.npu.kit import FlmOnPath, flm_model


def test_a_request_loads_a_model_on_the_npu_and_is_answered(daemons: DaemonFactory, tmp_path: Path) -> None:
    flm = FlmOnPath(tmp_path).pulled("qwen3:4b")
    daemon = daemons.start(flm_model(), env={"PATH": flm.path})
    answer = daemon.chat("npu/qwen3-4b")
    assert answer.status == 200, answer.body
    assert answer.headers["x-accelerd-model"] == "npu/qwen3-4b"
    assert answer.json()["choices"][0]["message"]["content"].startswith("The NPU says")
    assert daemon.state("npu/qwen3-4b") == "ready"
