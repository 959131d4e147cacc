"""A GPU in software: llama-server's Vulkan backend on Mesa's lavapipe, under a daemon that takes it for a Radeon.

Not collected by itself: tests/gpu/run starts it, under umockdev-wrapper. The engine is the real one, the kernel a
stand-in (`tests/gpu/card.py`). One daemon serves all tests, in their order.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest

from accelerd.estimate.gguf import read_header
from tests.devices import umock
from tests.gpu import card as cards
from tests.gpu.card import MIB, Card
from tests.harness import Daemon, DaemonFactory, eventually, exchange
from tests.models import SHORT_REPLY, make_model

VISIBLE = "GGML_VK_VISIBLE_DEVICES"  # ggml leaves out a device in software unless it is named
PATIENCE = 300.0  # s: the first load compiles shaders, on a processor that may have other work
NEEDS = 280  # MiB, of a model that takes somewhat less: the card has room for two that are loaded or one and this
PLENTY = 126_976  # tokens: a cache of 2 GiB, of which no tensor is larger than the driver allows
WORDS = 12_000  # nine tokens each: scores of all of them for each of 2048 tokens are more than the card has


pytestmark = pytest.mark.timeout(2 * PATIENCE)


@pytest.fixture(autouse=True)
def settled() -> None:
    """Instead of everybody's: the daemon and the testbed live as long as the module."""


@dataclass
class World:
    daemon: Daemon
    card: Card
    big: Path
    models: Path
    reports_shortage: bool  # does the driver tell that it has no memory?

    def used(self, model: str) -> dict[str, int]:
        """What a fresh look says that a loaded model uses, by pool."""
        answer = self.daemon.control("GET", "memory").json()
        return {pool["id"]: held["used"] for pool in answer["pools"] for held in pool["holdings"]
                if held["model"] == model and held["used"] is not None}  # fmt: skip

    def chat(self, model: str, tokens: int = 1) -> Any:
        """The answer to a request, however long it takes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=PATIENCE)
        body = {"model": model, "max_tokens": tokens, "messages": [{"role": "user", "content": "hi"}]}
        return exchange(connection, "POST", "/v1/chat/completions", body, {})

    def load(self, model: str) -> dict[str, Any]:
        """The last event."""
        last = self.daemon.events(f"load?model={model}")[-1]
        assert last["event"] == "ready", last
        return last

    def unload(self, *names: str) -> None:
        for name in names:
            assert self.daemon.events(f"unload?model={name}&force=1")[-1]["event"] == "stopped"

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """accelctl in a shell that has none of the daemon's variables for the driver."""
        env = {name: value for name, value in self.daemon.env.items() if name != VISIBLE}
        code = "import sys; from accelerd.cli import main; sys.exit(main())"
        return subprocess.run([sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True,
                              timeout=PATIENCE, check=False)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("gpu")
    told = folder / "told"
    told.mkdir()
    kept = Path(os.environ["ACCELERD_TEST_CACHE"]) / "gpu"
    server = Path(os.environ["ACCELERD_TEST_VULKAN_SERVER"])
    program = cards.engine(folder / "bin", server, told, kept / "shaders")
    models = kept / "models"
    hello, big = make_model(models, reply=SHORT_REPLY), make_model(models, size_mb=100, ctx=200_000)
    bed, text = umock.testbed(), cards.description()
    assert bed.add_from_string(text)
    card = Card(bed, cards.slot(text), folder / "proc", told)
    card.start()
    env = {"LD_PRELOAD": os.environ["LD_PRELOAD"], "UMOCKDEV_DIR": bed.get_root_dir(), VISIBLE: "0",
           "TEST_PROC": str(card.proc)}  # fmt: skip
    toml = f'[engines.llama-server]\nbinary = "{program}"\n[performance]\nhold_time = "1s"\n'
    toml += '[memory]\ngpu_reserve = "32MiB"\n'
    toml += '[defaults]\nstart_timeout = "4m"\n'
    toml += f'[models.hello]\npath = "{hello}"\ncontext = 1024\n'
    toml += "".join(f'[models.{name}]\npath = "{big}"\ncontext = 1024\nmemory = "{NEEDS}MiB"\n' for name in "abc")
    toml += f'[models.told]\npath = "{big}"\ncontext = 1024\n'
    declared = f'path = "{big}"\nkv_cache_type = "f16"\nbatch = 64\nubatch = 64\nmemory = "200MiB"\n'
    toml += f"[models.greedy]\n{declared}context = {PLENTY}\nenv = {{ TEST_ADDRESSES = '2000000' }}\n"
    toml += f"[models.odd]\n{declared}context = 150000\n"
    toml += f'[models.crash]\npath = "{hello}"\nenv = {{ TEST_STACK = "64" }}\n'
    with DaemonFactory(folder) as daemons:
        daemon = daemons.start(toml, module="tests.gpu.daemon", env=env)
        listed = subprocess.run([server, "--list-devices"], env={**os.environ, VISIBLE: "0"}, capture_output=True,
                                text=True, timeout=PATIENCE, check=True).stdout  # fmt: skip
        yield World(daemon, card, big, models, "(LLVM 15." in listed)
    card.close()


@pytest.fixture(scope="module")
def hello(world: World) -> dict[str, Any]:
    """The last event of its load."""
    return world.load("hello")


def test_it_answers(world: World, hello: dict[str, Any]) -> None:
    answer = world.chat("hello", 20)
    assert answer.status == 200, answer.body
    assert answer.json()["choices"][0]["message"]["content"].strip() == SHORT_REPLY
    assert world.daemon.status("hello")["device"] == world.card.slot


def test_what_a_model_uses_is_the_same_everywhere(world: World, hello: dict[str, Any]) -> None:
    """What the engine says that it has allocated, to the KiB; and what of it status and load say."""
    pid = world.daemon.status("hello")["pid"]
    allocated = world.card.allocated(pid)
    assert allocated > MIB
    used = eventually(
        lambda: (found := world.used("hello")) and found.get(world.card.slot) == allocated // 1024 * 1024 and found,
        "the card's figure is the engine's",
    )
    assert set(used) == {"ram", world.card.slot}
    eventually(lambda: world.daemon.status("hello")["memory_used"] == sum(world.used("hello").values()), "status")
    assert hello["memory_used"] >= used[world.card.slot]


def test_the_radeon_is_tuned_beside_nodes_that_compute_nothing(world: World, hello: dict[str, Any]) -> None:
    kinds = {one["id"]: one["kind"] for one in world.daemon.control("GET", "devices").json()["devices"]}
    assert {world.card.slot, "0000:00:01.0"} <= set(kinds), "also virtio-gpu's node is there"
    flags = world.daemon.control("GET", "explain?model=hello").json()["flags"]
    rules = {flag["text"]: flag["source"] for flag in flags if flag["source"].startswith("tuning rule strix-halo-")}
    assert {"-lm none", "-ngl all", "-fa on", "--cache-type-k q8_0"} <= set(rules)
    assert [text for text, rule in rules.items() if "radv" in rule], "the backend was recognised"


def test_the_clock_is_high_while_a_request_runs(world: World, hello: dict[str, Any]) -> None:
    eventually(lambda: world.card.level == "auto", "nothing runs")
    levels = set()
    assert world.chat("hello").status == 200
    eventually(lambda: levels.add(world.card.level) or "high" in levels, "high, and a second longer")
    eventually(lambda: world.card.level == "auto", "back")


def test_three_models_share_a_card_that_has_room_for_two(world: World) -> None:
    daemon = world.daemon
    world.unload("hello")
    for name in "abcab":
        world.load(name)
        there = [model["name"] for model in daemon.status()["models"] if model["state"] == "ready"]
        assert name in there
        assert len(there) <= 2
    steps = [step for name in "abc" for step in daemon.control("GET", f"explain?model={name}").json()["history"]]
    assert [step for step in steps if step["reason"].startswith("made room for ")], steps
    assert sum(world.used(name).get(world.card.slot, 0) for name in "abc") > 200 * MIB
    world.unload("a", "b", "c")
    eventually(lambda: not world.used("a") and not world.used("b"), "all of it is back")


def test_what_the_program_says_of_a_model_counts_where_it_lies(world: World) -> None:
    fit = world.daemon.control("GET", "fit?model=told").json()
    [option] = fit["options"]
    assert option["devices"] == [world.card.slot]
    for pool, share in option["shares"].items():
        assert sum(share.values()) == option["amounts"][pool]


def test_fit_asks_the_program_as_the_daemon_has_it(world: World) -> None:
    """In this shell lavapipe is hidden: accelctl alone would find no GPU in the program."""
    done = world.ctl("fit", str(world.big), "--ctx", "1024", "--json")
    found = json.loads(done.stdout)
    assert found["devices"] == [world.card.slot], done
    assert not [note for note in found["notes"] if "processor" in note or "queried" in note]


def test_a_new_model_is_not_refused_before_its_program_was_asked(world: World) -> None:
    words = world.models / f"words-{WORDS}.txt"  # a model is kept by the name of what it is made of
    words.write_text(" ".join(map("".join, islice(product(ascii_lowercase, repeat=4), WORDS))))
    path = make_model(world.models, words=words)
    vocabulary = read_header(path).skipped["tokenizer.ggml.tokens"]
    assert 4 * 2048 * vocabulary > cards.VRAM + cards.GTT, "what nobody needs does not fit"
    before = world.daemon.config.read_text()
    try:
        world.daemon.config.write_text(f'{before}[models.wordy]\npath = "{path}"\ncontext = 4096\n')
        assert world.daemon.control("POST", "reload").status == 200
        answer = world.chat("wordy")
        assert answer.status == 200, answer.body
        world.unload("wordy")
    finally:
        world.daemon.config.write_text(before)
        world.daemon.control("POST", "reload")


# --- what goes wrong ---


def failed(world: World, name: str) -> dict[str, Any]:
    """The error of a model that a request could not have."""
    answer = world.chat(name)
    assert answer.status == 503, answer.body
    error: dict[str, Any] = world.daemon.status(name)["error"]
    world.daemon.control("POST", f"reset?model={name}")
    return error


def test_a_driver_without_memory(world: World) -> None:
    """Newer lavapipe does not notice that an allocation has failed, and crashes; that of Debian 12 reports it."""
    error = failed(world, "greedy")
    if "ErrorOutOfDeviceMemory" in " ".join(error["tail"]) or world.reports_shortage:
        assert error["cause"] == "oom-kill", error
        assert "ran out of memory" in error["message"]
    else:
        assert "SIGSEGV" in error["message"], error


def test_a_backend_that_aborts(world: World) -> None:
    """The cache's tensors are larger than the driver allows; the engine says so in an assertion."""
    error = failed(world, "odd")
    assert re.search(r"cannot run the operation|buffer size limit|memory allocation limit", error["message"]), error
    assert "gdb" not in " ".join(error["tail"])


def test_a_driver_that_crashes(world: World) -> None:
    """Its compiler runs out of stack."""
    error = failed(world, "crash")
    assert "SIGSEGV" in error["message"] or "signal 11" in error["message"], error


def test_after_all_that_the_card_is_free_and_works(world: World) -> None:
    assert world.chat("hello").status == 200
    world.unload("hello")
    status = world.daemon.status()
    assert status["scheduler"]["residues"] == []
    assert not [process for process in world.daemon.children() if process.name().startswith("llama")]
