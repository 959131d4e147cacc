"""docs/dbus.md: every line of it is run as it stands, against a real daemon on a bus of the test's own."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from accelerd.base.errors import BUS_NAMES
from accelerd.base.names import BUS_ERROR
from accelerd.bus.service import interfaces
from tests.harness import Daemon, DaemonFactory, dummy_gguf, eventually, fake_model
from tests.system.fake_services import Bus, private_bus

PAGE = (Path(__file__).parents[2] / "docs/dbus.md").read_text()
ELSEWHERE = {"Unauthorized", "HostNotAllowed", "OriginNotAllowed", "RequestTimeout"}  # of HTTP alone


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def lines(kind: str) -> list[str]:
    return [line for block in blocks(kind) for line in block.splitlines() if line]


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Bus]:
    with private_bus(tmp_path / "bus") as bus:
        yield bus


@pytest.fixture
def daemon(broker: Bus, daemons: DaemonFactory, tmp_path: Path) -> Daemon:
    toml = fake_model("hello", dummy_gguf(tmp_path), "slow-load:0.3")
    return daemons.start(toml, env={"DBUS_SESSION_BUS_ADDRESS": broker.address})


@pytest.fixture
def env(broker: Bus, daemon: Daemon, tmp_path: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(tmp_path)} | {
        "DBUS_SESSION_BUS_ADDRESS": broker.address
    }


def bash(script: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-o", "pipefail", "-c", script]
    return subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


def test_every_command_of_the_page_works_as_written(env: dict[str, str]) -> None:
    """In the page's order, each block in one shell: a later line uses the job of an earlier one."""
    assert len(lines("sh")) >= 30
    for block in blocks("sh"):
        script = "\n".join(f"{line} || {{ echo 'this failed: {number}' >&2; exit 1; }}"
                           for number, line in enumerate(block.splitlines(), 1))  # fmt: skip
        done = bash(script, env)
        assert done.returncode == 0, f"{done.stderr}\n{block}"
        assert not done.stderr, f"{done.stderr}\n{block}"


def test_what_the_page_shows_is_there(env: dict[str, str]) -> None:
    """Not only without an error: the answers are those that the page tells of."""
    said = {line: bash(line, env).stdout for line in blocks("sh")[0].splitlines()}
    tree, manager, model, path, device = said.values()
    for part in ("/org/accelerd1", "/org/accelerd1/models/hello", "/org/accelerd1/devices/cpu"):
        assert part in tree
    for member in (
        *interfaces()["org.accelerd1.Manager"].properties,
        ".LoadModel",
        ".JobRemoved",
        ".GetManagedObjects",
    ):
        assert member in manager
    for member in interfaces()["org.accelerd1.Model"].properties:
        assert member in model
    assert path == 'o "/org/accelerd1/models/hello"\n'
    assert device == 'o "/org/accelerd1/devices/cpu"\n'


def test_a_load_ends_as_the_page_tells(env: dict[str, str], daemon: Daemon) -> None:
    block = next(block for block in blocks("sh") if "job=$(" in block)
    shown = bash(block, env).stdout.splitlines()
    assert 's "done"' in shown
    assert daemon.state("hello") == "ready"


@pytest.mark.parametrize("line", lines("sh watch"))
def test_what_watches_hears_of_a_load(line: str, env: dict[str, str]) -> None:
    with subprocess.Popen(
        ["bash", "-c", f"exec {line}"], env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as watcher:  # fmt: skip
        assert watcher.stdout is not None
        assert watcher.stderr is not None
        try:
            heard(watcher.stderr.fileno() if "busctl" in line else watcher.stdout.fileno(), "onitor")
            load = next(one for one in lines("sh") if "LoadModel" in one and "hello 0" in one)
            assert bash(load, env).returncode == 0
            heard(watcher.stdout.fileno(), "ready")
        finally:
            watcher.send_signal(signal.SIGINT)
            watcher.communicate(timeout=20)


def heard(stream: int, word: str) -> None:
    """Wait until a program has said it."""
    said, deadline = "", time.monotonic() + 20
    while word not in said:
        assert time.monotonic() < deadline, f"{word} is not in: {said}"
        if select.select([stream], [], [], 0.05)[0]:
            piece = os.read(stream, 65536).decode(errors="replace")
            assert piece, f"it ended after: {said}"
            said += piece


@pytest.mark.parametrize("line", lines("sh fails"))
def test_what_is_refused_is_refused_by_that_name(line: str, env: dict[str, str], daemon: Daemon) -> None:
    name = line.rpartition("# ")[2]
    done = bash(line, env)
    assert done.returncode != 0
    assert f"{BUS_ERROR}{name}: " in done.stderr
    assert daemon.state("hello") == "stopped"


def test_the_program_of_the_page_holds_and_releases(env: dict[str, str]) -> None:
    (program,) = blocks("python")
    pins = "busctl --user get-property org.accelerd1 /org/accelerd1 org.accelerd1.Manager Pins"
    command = [sys.executable, "-W", "ignore", "-c", program.replace("# … the work", "input()")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as working:
        try:
            held = '"hold" "subtitles of a film" "org.example.Film"'
            eventually(lambda: held in bash(pins, env).stdout, "the hold is seen")
        finally:
            _, err = working.communicate("\n", timeout=20)
    assert (working.returncode, err) == (0, "")
    eventually(lambda: bash(pins, env).stdout == "a(uosss) 0\n", "and its end")


def test_every_error_is_in_the_table() -> None:
    table = PAGE.partition("| error | when |")[2].partition("\n\n")[0]
    documented = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert documented == set(BUS_NAMES.values()) - ELSEWHERE


def test_every_method_and_signal_has_been_mentioned() -> None:
    for interface in interfaces().values():
        for member in interface.replies:
            assert re.search(rf"\b{member}\b", PAGE), f"{interface}: {member}"
