"""vLLM under a daemon, with a stand-in for it and for the card: models sleep, wake up, and are seen on the ledger."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.daemon.card import GIB, SLOT, Card
from tests.daemon.kit import history, side_by_side
from tests.daemon.service import Service, installed
from tests.harness import ROOT, Daemon, DaemonFactory, eventually
from tests.system.systemd_user import UserManager

PROGRAM = ROOT / "tests" / "fakes" / "fake_vllm.py"
MODULE = "tests.daemon.card_daemon"
QUICK = '[scheduler]\nlinger = "10ms"\nmin_resident = "0s"\n[memory]\nreserve = "4GiB"\n'
WEIGHTS = 64 << 10  # bytes of the file, which is sparse


class Stage:
    """A card, and models that want most of it."""

    def __init__(self, directory: Path, card: Card) -> None:
        self.directory, self.card = directory, card
        self.weights = directory / "weights"
        self.weights.mkdir()
        for part in (1, 2):  # sparse: 12 GiB by name, nothing on the disk
            with open(self.weights / f"model-{part}.safetensors", "wb") as file:
                file.truncate(6 * GIB)
        (self.weights / "config.json").write_text("{}")

    def model(self, name: str, trouble: str = "", sleep: bool = True, **settings: Any) -> str:
        settings = {"engine": "vllm", "binary": str(PROGRAM), "path": str(self.weights), **settings}
        lines = [f"[models.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
        lines += [f"[models.{name}.vllm]", f"sleep = {json.dumps(sleep)}", f"[models.{name}.env]"]
        env = {"FAKE_CARD": self.card.told, "FAKE_BYTES": 21 * GIB, "FAKE_KEPT": GIB // 2, "FAKE_TROUBLE": trouble,
               "FAKE_LOG": self.log(name), "FAKE_HOLD": self.directory / "hold"}  # fmt: skip
        return "\n".join([*lines, *(f'{key} = "{value}"' for key, value in env.items())]) + "\n"

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def noted(self, name: str) -> list[dict[str, Any]]:
        log = self.log(name)
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def starts(self, name: str) -> int:
        return len([one for one in self.noted(name) if "argv" in one])

    def asked(self, name: str) -> list[str]:
        return [one["path"] for one in self.noted(name) if "path" in one]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    card = Card(tmp_path / "card")
    yield Stage(tmp_path, card)
    card.close()


def start(daemons: DaemonFactory, stage: Stage, toml: str) -> Daemon:
    env = {"TEST_SYSFS": str(stage.card.sys), "TEST_PROC": str(stage.card.proc)}
    daemon = daemons.start(QUICK + toml, module=MODULE, env=env)
    eventually(lambda: held(daemon, SLOT) is not None, "the card is known")
    return daemon


def held(daemon: Daemon, pool: str) -> dict[str, tuple[str, int]] | None:
    """Who holds what of a pool, as `accelctl memory --json` has it: phase, MiB."""
    answer = daemon.control("GET", "memory").json()
    found = next((one for one in answer["pools"] if one["id"] == pool), None)
    if found is None:
        return None
    return {one["model"]: (one["phase"], one["reserved"] >> 20) for one in found["holdings"]}


def test_two_models_take_turns_on_one_card_and_each_is_started_once(daemons: DaemonFactory, stage: Stage) -> None:
    daemon = start(daemons, stage, stage.model("a", context=4096) + stage.model("b"))
    for name in ("a", "b", "a", "b"):
        answer = daemon.chat(name)
        assert (answer.status, answer.json()["model"]) == (200, name), answer.body
    assert (stage.starts("a"), stage.starts("b")) == (1, 1)
    chat = "/v1/chat/completions"
    assert stage.asked("a") == [chat, "/sleep?level=1", "/wake_up", chat, "/sleep?level=1"]
    argv = stage.noted("a")[0]["argv"]
    assert argv[:2] == ["serve", str(stage.weights)]
    assert argv[-3:] == ["--max-model-len", "4096", "--enable-sleep-mode"]
    assert argv[argv.index("--served-model-name") + 1] == "a"
    assert history(daemon, "a")[-6:] == ["asleep", "waking", "ready", "draining", "offloading", "asleep"]
    assert held(daemon, SLOT) == {"a": ("asleep", 512), "b": ("resident", 21 << 10)}
    in_main = held(daemon, "ram")
    assert in_main is not None
    assert in_main["a"][0] == "asleep"
    assert 12 << 10 <= in_main["a"][1] <= 13 << 10
    assert "b" not in in_main or in_main["b"][1] < 1 << 10


def test_all_that_shows_a_model_says_that_it_sleeps(daemons: DaemonFactory, stage: Stage) -> None:
    daemon = start(daemons, stage, stage.model("a", idle_timeout="200ms", sleep_timeout="1h"))
    assert daemon.chat("a").status == 200
    seen = daemon.wait_state("a", "asleep")
    assert seen["reason"].startswith("asleep: idle for")
    [entry] = daemon.send("GET", "/v1/models").json()["data"]
    assert (entry["status"], entry["state"]) == ({"value": "sleeping"}, "asleep")
    explained = daemon.control("GET", "explain?model=a").json()
    assert any(flag["text"] == "--enable-sleep-mode" for flag in explained["flags"])
    assert daemon.events("load?model=a")[-1]["event"] == "ready"
    assert stage.starts("a") == 1
    daemon.wait_state("a", "asleep")
    assert daemon.events("unload?model=a")[-1]["event"] == "stopped"
    assert held(daemon, SLOT) == held(daemon, "ram") == {}


@pytest.mark.parametrize("trouble", ["wake", "die"])
def test_what_does_not_wake_up_is_started_anew_and_the_request_is_answered(
    trouble: str, daemons: DaemonFactory, stage: Stage
) -> None:
    daemon = start(daemons, stage, stage.model("a", trouble, idle_timeout="200ms"))
    assert daemon.chat("a").status == 200
    daemon.wait_state("a", "asleep")
    assert daemon.chat("a").status == 200
    assert stage.starts("a") == 2


@pytest.mark.parametrize("trouble", ["sleep"])
def test_what_does_not_go_to_sleep_is_stopped(trouble: str, daemons: DaemonFactory, stage: Stage) -> None:
    daemon = start(daemons, stage, stage.model("a", trouble, idle_timeout="200ms"))
    assert daemon.chat("a").status == 200
    assert "does not go to sleep: status 500 to /sleep" in daemon.wait_state("a", "stopped")["reason"]


def test_without_main_memory_for_the_weights_it_is_stopped(daemons: DaemonFactory, stage: Stage) -> None:
    stage.card.main_memory(64, free=8)
    daemon = start(daemons, stage, stage.model("a", idle_timeout="200ms"))
    assert daemon.chat("a").status == 200
    assert "it cannot sleep: it needs 12.0 GiB of main memory" in daemon.wait_state("a", "stopped")["reason"]


def test_a_process_that_dies_in_its_sleep_is_noticed(daemons: DaemonFactory, stage: Stage) -> None:
    daemon = start(daemons, stage, stage.model("a", idle_timeout="200ms"))
    assert daemon.chat("a").status == 200
    psutil.Process(daemon.wait_state("a", "asleep")["pid"]).kill()
    assert "killed" in daemon.wait_state("a", "stopped")["reason"]
    assert held(daemon, "ram") == {}
    assert daemon.chat("a").status == 200


def test_a_model_is_not_asked_in_its_sleep_however_many_ask_at_once(daemons: DaemonFactory, stage: Stage) -> None:
    """The stand-in ends when it is."""
    daemon = start(daemons, stage, stage.model("a", concurrency=4) + stage.model("b", concurrency=4))
    with side_by_side() as do:
        answers = [do(daemon.chat, "ab"[number % 2]) for number in range(24)]
        assert {answer.result(60).status for answer in answers} == {200}
    assert (stage.starts("a"), stage.starts("b")) == (1, 1)


def test_a_model_without_sleep_is_stopped_and_has_no_paths_for_it(daemons: DaemonFactory, stage: Stage) -> None:
    daemon = start(daemons, stage, stage.model("a", sleep=False, idle_timeout="200ms"))
    assert daemon.chat("a").status == 200
    daemon.wait_state("a", "stopped")
    started = stage.noted("a")[0]
    assert (started["dev"], "--enable-sleep-mode" in started["argv"]) == (False, False)
    assert stage.asked("a") == ["/v1/chat/completions"]


@pytest.fixture
def service(user_manager: UserManager) -> Iterator[Service]:
    yield from installed(user_manager)


def test_a_sleeping_model_survives_a_restart_of_the_daemon_asleep(service: Service) -> None:
    manager = service.manager
    folder = manager.directory(manager.base / "stage")
    card = Card(folder / "card")
    try:
        stage = Stage(folder, card)
        for path in (folder, card.told):
            path.chmod(0o777)
        env = {"TEST_SYSFS": str(card.sys), "TEST_PROC": str(card.proc)}
        service.install(QUICK + stage.model("a") + stage.model("b"), environment=env)
        service.program(f"exec {sys.executable} -m {MODULE}")
        service.start()
        for name in ("a", "b"):
            assert service.chat(name).status == 200
        eventually(lambda: service.state("a") == "asleep", "a has made room for b")
        pids = [service.status(name)["pid"] for name in ("a", "b")]
        service.back(service.kill())
        for name, state in (("a", "asleep"), ("b", "ready")):
            service.wait_state(name, state)
        assert [service.status(name)["pid"] for name in ("a", "b")] == pids
        holds = held(service, SLOT)
        assert holds is not None
        assert holds["a"][0] == "asleep"
        assert service.chat("a").status == 200
        assert (stage.starts("a"), stage.starts("b")) == (1, 1)
        service.stop_all()
    finally:
        card.close()


def test_a_route_counts_the_requests_that_wait_inside_vllm(daemons: DaemonFactory, stage: Stage) -> None:
    toml = stage.model("a", sleep=False, concurrency=8, extra_args=["--max-num-seqs", "1"])
    daemon = start(daemons, stage, toml + '[routes.r]\nmodels = ["a"]\n')
    hold = stage.directory / "hold"
    hold.touch()
    with side_by_side() as do:
        answers = [do(daemon.chat, "a") for _ in range(4)]
        text = b"a has 3 requests that wait in its engine"
        eventually(lambda: text in daemon.control("GET", "explain?model=r").body, "it is seen")
        hold.unlink()
        assert {answer.result(60).status for answer in answers} == {200}
    eventually(lambda: text not in daemon.control("GET", "explain?model=r").body, "it is forgotten")
