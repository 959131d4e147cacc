"""The processes of all instances in one walk: by mark, by session, by descent."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerd.base import names
from accelerd.supervise.process.processes import InstanceTag, ProcessGroups, ProcessIdentity
from tests.supervise.bench import SupervisorBench


def origin(instance: str, session: int | None = None, main: int | None = None) -> ProcessIdentity:
    return ProcessIdentity(InstanceTag(instance, "/run/x"), session, main)


def process(
    proc: Path, pid: int, parent: int = 1, session: int = 0, tag: str = "", state: str = "S", started: int = 5,
    name: str = "a) (b", env_at: int = 4096,
) -> None:  # fmt: skip
    folder = proc / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    fields = [state, parent, session, session, *[0] * 15, started, *[0] * 27, env_at, env_at + 10, 0]
    (folder / "stat").write_text(f"{pid} ({name}) {' '.join(map(str, fields))}\n")
    variables = [f"{names.ENV_INSTANCE}={tag}"] if tag else ["PATH=/bin"]
    (folder / "environ").write_bytes(b"\0".join(entry.encode() for entry in variables) + b"\0")


def test_by_mark_by_session_and_by_descent(tmp_path: Path) -> None:
    process(tmp_path, 1)
    process(tmp_path, 10, tag="one")
    process(tmp_path, 11, parent=10, session=99, tag="one")
    process(tmp_path, 20, session=20)
    process(tmp_path, 21, parent=1, session=20)
    process(tmp_path, 30)
    process(tmp_path, 32, parent=31)
    process(tmp_path, 31, parent=30, session=31)
    process(tmp_path, 33, parent=30, state="Z")
    process(tmp_path, 40, tag="an earlier life of one")
    process(tmp_path, 50, tag="one", env_at=0)  # not ours to look into
    groups = ProcessGroups(tmp_path)
    wanted = {1: origin("one"), 2: origin("two", session=20), 3: origin("three", main=30), 4: origin("four")}
    assert groups.look(wanted) == {1: [10, 11], 2: [20, 21], 3: [30, 31, 32], 4: []}


def test_a_process_that_executes_another_program_is_looked_at_again(tmp_path: Path) -> None:
    """Between fork and exec it still has the environment of accelerd."""
    process(tmp_path, 10)
    groups = ProcessGroups(tmp_path)
    assert groups.look({1: origin("one")}) == {1: []}
    (tmp_path / "10/environ").write_bytes(f"{names.ENV_INSTANCE}=one\0".encode())
    assert groups.look({1: origin("one")}) == {1: []}, "what has not changed is not read"
    process(tmp_path, 10, tag="one", env_at=8192)
    assert groups.look({1: origin("one")}) == {1: [10]}
    process(tmp_path, 10, tag="two", started=6, env_at=8192)
    assert groups.look({1: origin("one")}) == {1: []}, "another process has its pid"


def test_parents_in_a_circle_end_nothing(tmp_path: Path) -> None:
    process(tmp_path, 10, parent=11)
    process(tmp_path, 11, parent=10)
    assert ProcessGroups(tmp_path).look({1: origin("one", main=12)}) == {1: []}


@given(st.binary(max_size=80))
def test_any_text_is_a_process_or_none(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "groups" / "7"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stat").write_bytes(b"7 (x) S " + text)
    assert ProcessGroups(folder.parent).look({1: origin("one", main=8)}) == {1: []}


async def test_the_processes_of_real_instances(bench: SupervisorBench) -> None:
    async with bench:
        assert await asyncio.to_thread(bench.supervisor.process_finder()) == {}
        plain, forking = bench.start(), bench.start("fork-wrapper", name="n")
        stray = bench.start("setsid-grandchild", name="o")
        for number in (plain, forking, stray):
            await bench.ready(number)
        await bench.until(lambda: bool(bench.recorded("bystander")))
        stranger = bench.recorded("bystander")[0]["pid"]
        found, again = await asyncio.gather(*(asyncio.to_thread(bench.supervisor.process_finder()) for _ in range(2)))
        assert found == again
        assert found[plain] == [bench.pid(plain)]
        assert bench.pid(forking) in found[forking]
        assert len(found[forking]) == 2
        assert {bench.pid(stray), stranger} <= set(found[stray])
        os.kill(bench.pid(plain), signal.SIGKILL)
        await bench.gone(plain)
        assert set(await asyncio.to_thread(bench.supervisor.process_finder())) == {forking, stray}
