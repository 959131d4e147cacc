"""Thirty real models that nobody wrote a memory figure for, on a pool for three; and strangers who take the pool.

Everything is real but the size of main memory (small_machine.py): llama-server, its memory, the stranger's memory.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon.kit import rest_of, side_by_side, sse, whole_stream
from tests.harness import Daemon, DaemonFactory, eventually, first_event, streaming
from tests.models import SHORT_REPLY, make_model
from tests.real.small_machine import MIB, SmallMemory

SIZES = (20, 30, 45)  # MB
MODELS = 30
NAMES = [f"m{number:02}" for number in range(MODELS)]
LARGEST = 150 * MIB  # more than what any of them needs: three of them fill the pool
POOL = 3 * LARGEST
CLIENTS = 6
MACHINE = "tests.real.small_machine"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A file for each model: models that share one would share its pages too."""
    folder = tmp_path_factory.mktemp("thirty")
    made = [make_model(folder, reply=SHORT_REPLY, size_mb=size) for size in SIZES]
    found = {}
    for name, source in zip(NAMES, itertools.cycle(made), strict=False):
        found[name] = folder / f"{name}.gguf"
        shutil.copyfile(source, found[name])
    yield found
    shutil.rmtree(folder)


@pytest.fixture
def small(tmp_path: Path) -> Callable[[int], SmallMemory]:
    return lambda total: SmallMemory(tmp_path / "meminfo", total)


def toml(llama_server: str, files: dict[str, Path], head: str, **settings: object) -> str:
    """No word on what any model needs."""
    defaults = {"context": 1024, "threads": 1, "mmap": False, **settings}
    lines = [head, f'[engines.llama-server]\nbinary = "{llama_server}"', "[defaults]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in defaults.items()]
    lines += [f'[models.{name}]\npath = "{path}"' for name, path in files.items()]
    return "\n".join(lines) + "\n"


def begin(daemons: DaemonFactory, memory: SmallMemory, text: str) -> Daemon:
    memory.daemon = daemon = daemons.start(text, module=MACHINE, env={"TEST_MEMINFO": str(memory.path)})
    return daemon


def mix(count: int) -> list[str]:
    """Who is asked for, in order: two favourites, some that are liked, bursts on one, two that alternate, strangers."""
    draw = random.Random(5)
    asked: list[str] = []
    while len(asked) < count:
        kind = draw.random()
        if kind < 0.45:
            asked += [draw.choice(NAMES[:2])] * draw.randint(1, 4)
        elif kind < 0.65:
            asked += [draw.choice(NAMES[2:8])] * draw.randint(1, 6)
        elif kind < 0.8:
            asked += [draw.choice(NAMES)] * draw.randint(8, 20)
        elif kind < 0.9:
            asked += draw.sample(NAMES[2:12], 2) * draw.randint(3, 8)
        else:
            asked += draw.sample(NAMES, 3)
    return asked[:count]


def ask(daemon: Daemon, number: int, name: str) -> str:
    """One request, streamed or not; "" if it was served as a whole, else what came instead."""
    if number % 3:
        answer = daemon.chat(name, max_tokens=6)
        whole = answer.status == 200 and answer.json()["choices"][0]["message"]["content"]
        return (
            "" if whole and answer.headers["x-accelerd-model"] == name else f"{name}: {answer.status} {answer.body!r}"
        )
    status, events, complete = whole_stream(daemon, name, max_tokens=6)
    good = status == 200 and complete and events[-1:] == ["[DONE]"]
    return "" if good else f"{name}: {status} {events[-3:]}"


def play(daemon: Daemon, asked: list[str]) -> list[str]:
    """All requests, some of them at the same time; what went wrong."""
    work = iter(list(enumerate(asked)))
    failures: list[str] = []

    def client() -> None:
        for number, name in work:  # one iterator of a list for all: each item is taken once
            if failed := ask(daemon, number, name):
                failures.append(failed)

    with side_by_side() as do:
        for future in [do(client) for _ in range(CLIENTS)]:
            future.result()
    return failures


@pytest.mark.parametrize(("limited_by", "requests"), [("scheduler.memory", 300), ("main memory", 200)])
def test_requests_to_thirty_models_on_a_pool_for_three(
    daemons: DaemonFactory,
    llama_server: str,
    files: dict[str, Path],
    small: Callable[[int], SmallMemory],
    limited_by: str,
    requests: int,
    record_property: Callable[[str, object], None],
) -> None:
    reserve = 256 * MIB
    whole = limited_by == "main memory"
    head = f'[memory]\nreserve = "{reserve}"\n[scheduler]\nlinger = "100ms"\n' + (
        "" if whole else f'memory = "{POOL}"\n'
    )
    with small(POOL + reserve if whole else 8 * POOL) as memory:
        daemon = begin(daemons, memory, toml(llama_server, files, head))
        needs = [model["memory"] for model in daemon.status()["models"]]
        assert max(needs) <= LARGEST
        assert sum(needs) > 4 * POOL
        began = time.monotonic()
        failures = play(daemon, mix(requests))
        took = time.monotonic() - began
        assert failures == []
        assert memory.most <= POOL
        log = daemon.output()
        loads, room = log.count("→ starting"), log.count("made room for")
        assert room > requests // 30, "the pool was fought for"
        assert loads < requests // 2
        assert "out of memory" not in log
        for name in NAMES:  # nobody is lost
            assert daemon.chat(name, max_tokens=1).status == 200
    record_property("seconds", round(took, 1))
    record_property("loads", loads)
    print(f"{limited_by}: {loads} loads in {took:.1f} s, models held {memory.most / MIB:.0f} MiB of {POOL / MIB:.0f}")


TOTAL = 640 * MIB
RESERVE = 64 * MIB
HEAD = f"""
[memory]
reserve = "{RESERVE}"
soft_grace = "500ms"
[scheduler]
memory_wait = "500ms"
cool_down = "1s"
"""


def ready(daemon: Daemon) -> set[str]:
    return {model["name"] for model in daemon.status()["models"] if model["state"] == "ready"}


@pytest.mark.parametrize("threshold", ["hard", "soft"])
def test_a_stranger_takes_the_memory_and_gives_it_back(
    daemons: DaemonFactory,
    llama_server: str,
    files: dict[str, Path],
    small: Callable[[int], SmallMemory],
    threshold: str,
    record_property: Callable[[str, object], None],
) -> None:
    names = NAMES[:3]
    with small(TOTAL) as memory:
        text = toml(llama_server, {name: files[name] for name in names}, HEAD) + "preload = true\n"  # of the last one
        daemon = begin(daemons, memory, text)
        for name in names:
            assert daemon.chat(name, max_tokens=1).status == 200
        assert ready(daemon) == set(names)
        left = RESERVE // 4 if threshold == "hard" else RESERVE * 3 // 4
        memory.press(left)
        began = time.monotonic()
        eventually(lambda: memory.free() > RESERVE, "enough memory came back")
        took = time.monotonic() - began
        gone = set(names) - ready(daemon)
        assert gone
        why = daemon.status(min(gone))["reason"]
        assert "main memory is short" in why
        # Strangers take what comes back until no model is left; who asks for one then waits in vain, and hears why.
        eventually(lambda: memory.press(left) or not ready(daemon), "every model gave way")
        memory.press(RESERVE + 6 * MIB)
        refused = eventually(lambda: (answer := daemon.chat(names[0])).status != 200 and answer, "no room")
        assert (refused.status, refused.code) == (503, "memory_in_use")
        assert "in use by other programs" in refused.json()["error"]["message"]
        memory.take_back()
        # What shall be there comes back by itself, the others when they are asked for.
        daemon.wait_state(names[2], "ready")
        for name in names:
            assert daemon.chat(name, max_tokens=1).status == 200
    record_property("seconds", round(took, 2))
    print(f"{threshold}: memory was back {took:.2f} s after the stranger had taken his")


def test_idle_models_make_room_and_the_one_at_work_goes_on(
    daemons: DaemonFactory,
    llama_server: str,
    files: dict[str, Path],
    small: Callable[[int], SmallMemory],
    tmp_path: Path,
) -> None:
    talker = make_model(tmp_path, size_mb=40, ctx=32768)
    with small(TOTAL) as memory:
        text = toml(llama_server, {**{name: files[name] for name in NAMES[:3]}, "talker": talker}, HEAD, context=2048)
        daemon = begin(daemons, memory, f"{text}context = 3072\n")  # of the talker: a long answer
        for name in NAMES[:3]:
            assert daemon.chat(name, max_tokens=1).status == 200
        with streaming(daemon, "talker", ignore_eos=True, max_tokens=2500) as response:
            assert first_event(response).startswith(b"data: ")
            assert ready(daemon) == {"talker", *NAMES[:3]}
            memory.press(RESERVE * 3 // 4)
            eventually(lambda: ready(daemon) < {"talker", *NAMES[:3]}, "somebody gave way")
            assert "talker" in ready(daemon)
            text, complete = rest_of(response)
        assert complete
        assert sse(text)[-1] == "[DONE]"
