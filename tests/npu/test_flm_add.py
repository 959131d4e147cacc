"""accelctl add npu/NAME: found, fetched, written, read by the daemon, and answering; and accelctl doctor about it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Daemon, DaemonFactory
from tests.npu.kit import FlmOnPath, flm_model

ACCELCTL = [sys.executable, "-c", "import sys; from accelerd.cli import main; sys.exit(main())"]


class Answer:
    """How accelctl ended."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.status, self.out, self.err = done.returncode, done.stdout, done.stderr

    def json(self) -> Any:
        return json.loads(self.out)


def accelctl(env: dict[str, str], *arguments: str) -> Answer:
    done = subprocess.run(
        [*ACCELCTL, *arguments], env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    return Answer(done)


@pytest.fixture
def flm(tmp_path: Path) -> FlmOnPath:
    return FlmOnPath(tmp_path)


def running(daemons: DaemonFactory, flm: FlmOnPath, toml: str = "") -> Daemon:
    return daemons.start(toml, env={"PATH": flm.path})


def dropins(daemon: Daemon) -> dict[str, Any]:
    found = {}
    for file in (daemon.config.parent / "accelerd.toml.d").glob("*.toml"):
        found |= tomllib.loads(file.read_text())["models"]
    return found


def pulls(flm: FlmOnPath) -> list[str]:
    return [record["argv"][1] for record in flm.noted("argv") if record["argv"][0] == "pull"]


@pytest.mark.parametrize("written", ["npu/qwen3-4b", "npu/qwen3:4b", "npu/Qwen3-4B-FLM"])
def test_add_ends_in_an_answer_with_no_other_file_edited(daemons: DaemonFactory, flm: FlmOnPath, written: str) -> None:
    daemon = running(daemons, flm)
    before = daemon.config.read_bytes()
    done = accelctl(daemon.env, "add", written)
    assert done.status == 0, done.err
    assert pulls(flm) == ["qwen3:4b"]
    assert dropins(daemon) == {"npu/qwen3-4b": {"engine": "flm", "model": "qwen3:4b"}}
    assert daemon.config.read_bytes() == before
    answer = daemon.chat("npu/qwen3-4b")
    assert answer.status == 200, answer.body
    assert answer.json()["choices"][0]["message"]["content"].startswith("The NPU says")


def test_what_was_added_can_be_removed(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    daemon = running(daemons, flm)
    assert accelctl(daemon.env, "add", "npu/qwen3-4b").status == 0
    removed = accelctl(daemon.env, "remove", "npu/qwen3-4b")
    assert removed.status == 0, removed.err
    assert dropins(daemon) == {}
    assert daemon.chat("npu/qwen3-4b").status == 404


def test_the_download_is_shown_and_what_is_here_is_not_fetched_again(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    daemon = running(daemons, flm)
    done = accelctl(daemon.env, "add", "npu/llama3.2-1b")
    assert "llama3.2:1b: downloading the model" in done.err
    assert "llama-server" not in done.out
    flm.pulled("qwen3:4b")
    done = accelctl(daemon.env, "--json", "add", "npu/qwen3-4b")
    assert done.json()["name"] == "npu/qwen3-4b"
    assert done.json()["reloaded"] is True
    assert pulls(flm) == ["llama3.2:1b"]


def test_a_download_that_fails_adds_nothing_and_shows_its_last_lines(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    flm.set(remote=False)
    daemon = running(daemons, flm)
    done = accelctl(daemon.env, "--json", "add", "npu/qwen3-4b")
    assert done.status == 1
    error = done.json()["error"]
    assert error["code"] == "pull_failed"
    assert any("resolve host name" in line for line in error["tail"])
    assert dropins(daemon) == {}


def test_without_a_download_only_the_drop_in_is_written(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    daemon = running(daemons, flm)
    assert accelctl(daemon.env, "add", "npu/qwen3-4b", "--no-pull").status == 0
    assert pulls(flm) == []
    assert "npu/qwen3-4b" in dropins(daemon)


def test_a_slip_is_answered_with_what_was_meant(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    daemon = running(daemons, flm)
    done = accelctl(daemon.env, "--json", "add", "npu/qwem3-4b")
    assert done.status == 5
    assert "npu/qwen3-4b" in done.json()["error"]["hint"]
    assert pulls(flm) == []
    assert accelctl(daemon.env, "add", "npu/qwen3").status == 5, "a family has many sizes"


def test_whisper_and_embeddings_are_added_as_what_they_are(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    daemon = running(daemons, flm)
    for name in ("npu/whisper-v3", "npu/embed-gemma-300m"):
        assert accelctl(daemon.env, "add", name).status == 0
    assert dropins(daemon) == {
        "npu/whisper-v3-turbo": {"engine": "flm", "model": "whisper-v3:turbo", "transcription": True},
        "npu/embed-gemma-300m": {"engine": "flm", "model": "embed-gemma:300m", "embeddings": True},
    }


def test_what_is_there_is_not_fetched_a_second_time_under_another_name(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    daemon = running(daemons, flm, flm_model("mine", "qwen3-4b-FLM"))
    done = accelctl(daemon.env, "--json", "add", "npu/qwen3-4b")
    assert done.json()["error"]["code"] == "exists"
    assert pulls(flm) == []
    dry = accelctl(daemon.env, "--json", "add", "npu/llama3.2-1b", "--dry-run")
    assert dry.json()["table"] == {"engine": "flm", "model": "llama3.2:1b"}
    assert pulls(flm) == []


def test_who_fetches_gigabytes_hears_first_that_they_will_not_run(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    flm.set(kernel="6.14.0")
    daemon = running(daemons, flm)
    done = accelctl(daemon.env, "add", "npu/qwen3-4b")
    assert done.status == 0
    assert "the kernel 6.14.0 is too old for FastFlowLM" in done.err


def test_fit_says_what_such_a_model_needs(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    daemon = running(daemons, flm, flm_model())
    done = accelctl(daemon.env, "fit", "npu/qwen3-4b")
    assert "FastFlowLM's list of models" in done.out
    assert (done.status, "no working NPU" in done.out) == (1, True), "what this machine has not"


# --- doctor ---------------------------------------------------------------------------------------------------


def checks(env: dict[str, str]) -> dict[str, dict[str, str]]:
    found = accelctl(env, "--json", "doctor").json()["checks"]
    return {check["id"]: check for check in found if check["id"].startswith(("npu", "flm"))}


def test_B_doctor_says_what_flm_validate_says(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    env = daemons.environment(PATH=flm.path)
    found = checks(env)
    assert found["flm"]["detail"].endswith("version 0.9.45")
    assert found["npu"]["detail"] == "/dev/accel/accel0, 8 columns, firmware 1.1.2.64"
    assert found["npu-stack"]["level"] == "ok"


def test_doctor_names_the_platform_where_flm_does(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    flm.set(version="1.0.4", platform="npu5")
    found = checks(daemons.environment(PATH=flm.path))
    assert found["npu"]["detail"] == "/dev/accel/accel0, 8 columns, firmware 1.1.2.64, npu5"


@pytest.mark.parametrize(
    ("settings", "check", "detail", "fix"),
    [
        ({"kernel": "6.14.0"}, "npu-kernel", "needs 6.17", "newer kernel"),
        ({"firmware": [1, 0, 1, 1]}, "npu-firmware", "needs 1.1.0.0", "linux-firmware"),
        ({"device": False}, "npu-device", "no AMD NPU", "render"),
        ({"columns": 5}, "npu-columns", "has 5 columns", "another engine"),
        ({"memlock": 8 << 20}, "npu-memlock", "may lock 8.0 MiB", "DefaultLimitMEMLOCK=infinity"),
    ],
)
def test_B_doctor_names_what_is_wrong_and_its_remedy(
    daemons: DaemonFactory, flm: FlmOnPath, settings: dict[str, Any], check: str, detail: str, fix: str
) -> None:
    flm.set(**settings)
    found = checks(daemons.environment(PATH=flm.path))[check]
    assert found["level"] == "fail"
    assert detail in found["detail"]
    assert fix in found["fix"]


def test_B_doctor_knows_the_limit_of_the_user_s_systemd(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    """A shell may lock all, and what systemd starts may not."""
    systemctl = flm.bin / "systemctl"
    systemctl.write_text("#!/bin/sh\necho DefaultLimitMEMLOCK=8388608\n")
    systemctl.chmod(0o755)
    found = checks(daemons.environment(PATH=flm.path))["npu-memlock"]
    assert found["level"] == "fail"
    assert "models may lock 8.0 MiB" in found["detail"]


def test_doctor_names_models_that_were_never_fetched(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    daemon = running(daemons, flm, flm_model())
    found = checks(daemon.env)["npu-models"]
    assert (found["level"], found["fix"]) == ("fail", "flm pull qwen3:4b")


def test_doctor_says_nothing_of_npus_where_nobody_wants_one(daemons: DaemonFactory, tmp_path: Path) -> None:
    env = daemons.environment()
    assert checks(env) == {}
    config = Path(env["XDG_CONFIG_HOME"]) / "accelerd" / "accelerd.toml"
    config.parent.mkdir(parents=True)
    config.write_text(flm_model())
    assert checks(env)["flm"]["level"] == "fail", "a model needs the program"
