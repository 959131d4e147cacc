"""The shortest way through the whole house: a request in at the door, an answer out."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from tests.harness import DaemonFactory, dummy_gguf, fake_model


def test_a_request_loads_a_model_and_is_answered(daemons: DaemonFactory, tmp_path: Path) -> None:
    daemon = daemons.start(fake_model("a", dummy_gguf(tmp_path)))
    answer = daemon.chat("a")
    assert answer.status == 200, answer.body
    assert answer.headers["x-accelerd-model"] == "a"
    assert answer.json()["choices"][0]["message"]["content"]
    assert daemon.state("a") == "ready"
    assert daemon.stop() == 0


def test_names_as_other_programs_have_them(daemons: DaemonFactory, tmp_path: Path) -> None:
    names = ["claude-sonnet-4@20250514", "model[1m]", "Größtes Modell", "日本語"]
    file = dummy_gguf(tmp_path)
    daemon = daemons.start("".join(fake_model(name, file) for name in names))
    assert [model["id"] for model in daemon.send("GET", "/v1/models").json()["data"]] == names
    for name in names:
        answer = daemon.chat(name)
        assert answer.status == 200, answer.body
        assert unquote(answer.headers["x-accelerd-model"]) == name
        assert daemon.state(name) == "ready"
