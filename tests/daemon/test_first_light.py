"""The shortest way through the whole house: a request in at the door, an answer out."""

from __future__ import annotations

from pathlib import Path

from tests.harness import DaemonFactory, dummy_gguf, fake_model


def test_a_request_loads_a_model_and_is_answered(daemons: DaemonFactory, tmp_path: Path) -> None:
    daemon = daemons.start(fake_model("a", dummy_gguf(tmp_path)))
    answer = daemon.chat("a")
    assert answer.status == 200, answer.body
    assert answer.headers["x-accelerd-model"] == "a"
    assert answer.json()["choices"][0]["message"]["content"]
    assert daemon.state("a") == "ready"
    assert daemon.stop() == 0
