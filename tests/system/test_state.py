"""The state file: what is remembered, and every way in which a disk can disappoint."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from accelerd.base import names
from accelerd.control.state_store import MODELS_KEPT, StateStore
from accelerd.memory.learned import LearnedRecord
from accelerd.system.private_files import AtomicFile


class FailingFile(AtomicFile):
    """A file on a disk that refuses writes, at a given step, as long as `error` is set."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.error: int | None = None
        self.attempts = 0

    def write(self, data: bytes) -> None:
        self.attempts += 1
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        super().write(data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state/accelerd/state.json"


def opened(path: Path, **options: object) -> StateStore:
    store = StateStore(path, debounce=0.01, retry_first=0.01, retry_cap=0.04, **options)  # type: ignore[arg-type]
    store.read()
    return store


def remember(path: Path, key: str = "qwen", seconds: float = 2.5) -> None:
    """One whole run that learns one thing."""

    async def run() -> None:
        store = opened(path)
        store.remember_load(key, seconds)
        await store.close()

    asyncio.run(run())


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("did not come true within 5 s")


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if vars(record).get("message_id") == names.MSG_STATE_FILE]


def test_what_was_learned_is_there_after_a_restart(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert opened(path).load_seconds("qwen") is None
    remember(path)
    store = opened(path)
    assert (store.load_seconds("qwen"), store.load_seconds("other")) == (2.5, None)
    models = {"qwen": {"load_seconds": 2.5}}
    assert json.loads(path.read_bytes()) == {"version": 1, "models": models, "pins": {}, "learned": []}
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(path.parent) == ["state.json"]
    assert events(caplog) == []


def test_pins_are_remembered_until_they_are_taken_back(path: Path) -> None:
    async def run(*pins: tuple[str, str | None]) -> dict[str, str]:
        store = opened(path)
        before = dict(store.pins)
        for toolbox, image in pins:
            store.pin(toolbox, image)
        await store.flush()
        await store.close()
        return before

    assert asyncio.run(run(("radv", "aaa"), ("rocm", "bbb"))) == {}
    assert asyncio.run(run(("radv", None), ("nobody", None), ("rocm", "ccc"))) == {"radv": "aaa", "rocm": "bbb"}
    assert asyncio.run(run()) == {"rocm": "ccc"}
    written = path.stat().st_mtime_ns
    assert asyncio.run(run(("rocm", "ccc"))) == {"rocm": "ccc"}
    assert path.stat().st_mtime_ns == written, "nothing changed"


def test_a_state_file_without_pins_has_none(path: Path) -> None:
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_text('{"version": 1, "models": {"qwen": {"load_seconds": 2.5}}}')
    store = opened(path)
    assert (store.pins, store.load_seconds("qwen")) == ({}, 2.5)


def test_the_seconds_of_the_last_load_count(path: Path) -> None:
    remember(path, seconds=2.5)
    remember(path, seconds=1.25)
    assert opened(path).load_seconds("qwen") == 1.25


LEARNED = LearnedRecord(
    key="k", devices=("0000:c1:00.0",), model="qwen", file="/m/qwen.gguf", estimate={"ram": 5}, peak={"ram": 7}, at=9.0
)


def test_what_was_measured_is_remembered(path: Path) -> None:
    async def run(*entries: LearnedRecord) -> None:
        store = opened(path)
        store.learn(entries)
        await store.close()

    asyncio.run(run(LEARNED, LearnedRecord(key="other", settled=True, need=3)))
    assert opened(path).learned == (LEARNED, LearnedRecord(key="other", settled=True, need=3))
    written = path.stat().st_mtime_ns
    asyncio.run(run(LEARNED, LearnedRecord(key="other", settled=True, need=3)))
    assert path.stat().st_mtime_ns == written, "nothing changed"
    asyncio.run(run())
    assert opened(path).learned == ()


def test_a_file_of_before_memory_was_measured_by_pool_is_read(path: Path) -> None:
    """Its figures were of all memory together, by another key: they are of no use any more, its times are."""
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_text(
        '{"version": 1, "models": {"qwen": {"load_seconds": 2.5, "memory": 7, "need": 9}}, "pins": {"a": "b"}}'
    )
    store = opened(path)
    assert (store.load_seconds("qwen"), store.pins, store.learned, store.degraded) == (2.5, {"a": "b"}, (), None)
    remember(path, seconds=3.0)
    assert opened(path).pins == {"a": "b"}


def test_a_file_of_an_accelerd_that_remembers_more_is_read(path: Path) -> None:
    path.parent.mkdir(parents=True, mode=0o700)
    more = {"version": 1, "learned": [{"key": "k", "peak": {"ram": 7}, "colour": "red"}], "more": [1, 2]}
    path.write_text(json.dumps(more))
    assert opened(path).learned == (LearnedRecord(key="k", peak={"ram": 7}),)


def test_changes_are_written_soon_together_and_not_at_all_when_nothing_changed(path: Path) -> None:
    async def run() -> None:
        file = FailingFile(path)
        store = opened(path, file=file)
        for number in range(50):
            store.remember_load("qwen", float(number))
        store.learn([LEARNED])
        await eventually(path.exists)
        store.remember_load("qwen", 49.0)
        await store.close()
        assert file.attempts == 1

    asyncio.run(run())
    assert opened(path).learned == (LEARNED,)


def test_a_change_during_a_write_is_written_too(path: Path) -> None:
    async def run() -> None:
        file = FailingFile(path)
        store = opened(path, file=file)
        store.remember_load("one", 1.0)
        await eventually(lambda: file.attempts == 1)
        store.remember_load("two", 2.0)
        await eventually(lambda: path.exists() and b"two" in path.read_bytes())
        await store.close()

    asyncio.run(run())


def test_only_so_many_models_are_kept_the_oldest_fall_out(path: Path) -> None:
    async def run() -> None:
        store = opened(path)
        for number in range(MODELS_KEPT + 5):
            store.remember_load(f"m{number}", 1.0)
        await store.close()

    asyncio.run(run())
    store = opened(path)
    assert store.load_seconds("m4") is None
    assert store.load_seconds("m5") == 1.0


BROKEN = {
    "empty": b"",
    "garbage": b"\x00\xff\x17 not json",
    "truncated": b'{"version": 1, "models": {"qwen": {"load_sec',
    "no-object": b"[]",
    "wrong-type": b'{"version": 1, "models": {"qwen": {"load_seconds": "soon"}}}',
    "negative": b'{"version": 1, "models": {"qwen": {"load_seconds": -1}}}',
    "negative-memory": b'{"version": 1, "learned": [{"key": "k", "peak": {"ram": -1}}]}',
    "nameless-memory": b'{"version": 1, "learned": [{"peak": {"ram": 1}}]}',
    "no-such-time": b'{"version": 1, "learned": [{"key": "k", "at": 1e300}]}',
    "no-version": b'{"models": {}}',
    "version-0": b'{"version": 0, "models": {}}',
    "nested": b'{"version": 1, "models": ' + b"[" * 100_000,
    "nested-elsewhere": b'{"x": ' + b'{"a":' * 100_000,
    "not-utf8": b'{"version": 1, "models": {"\xff": {}}}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_set_aside_and_the_store_starts_empty(
    path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    remember(path)
    path.write_bytes(content)
    store = opened(path)
    assert store.load_seconds("qwen") is None
    assert store.degraded is None
    assert (path.parent / "state.json.corrupt-1").read_bytes() == content
    assert [text for text in events(caplog) if "starting empty, the old one is kept as state.json.corrupt-1" in text]
    remember(path, seconds=3.0)
    assert opened(path).load_seconds("qwen") == 3.0


def test_broken_files_are_counted_and_bounded(path: Path) -> None:
    remember(path)
    for number in range(12):
        path.write_bytes(b"broken %d" % number)
        opened(path)
    kept = sorted(name for name in os.listdir(path.parent) if "corrupt" in name)
    assert kept == [f"state.json.corrupt-{number}" for number in range(1, 10)]
    assert (path.parent / kept[-1]).read_bytes() == b"broken 11"


def test_planted_links_fifos_and_directories_are_set_aside_not_followed(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text('{"version": 1, "models": {"qwen": {"load_seconds": 9}}}')
    remember(path)
    plants: list[Callable[[], None]] = [
        lambda: path.symlink_to(victim), lambda: os.mkfifo(path), path.mkdir,
    ]  # fmt: skip
    for plant in plants:
        path.unlink()
        plant()
        assert opened(path).load_seconds("qwen") is None
        assert not os.path.lexists(path)
        remember(path)
    assert "9" in victim.read_text()
    assert opened(path).load_seconds("qwen") == 2.5


def test_a_file_of_a_newer_version_is_left_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    newer = b'{"version": 2, "models": ["in", "another", "shape"]}'
    remember(path)
    path.write_bytes(newer)

    async def run() -> None:
        store = opened(path)
        assert "written by a newer accelerd (version 2)" in str(store.degraded)
        store.remember_load("qwen", 1.0)
        assert store.load_seconds("qwen") == 1.0  # in this run it is known
        await store.flush()
        await store.close()

    asyncio.run(run())
    assert path.read_bytes() == newer
    assert os.listdir(path.parent) == ["state.json"]
    assert len(events(caplog)) == 1


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_failing_disk_degrades_and_is_tried_again(path: Path, caplog: pytest.LogCaptureFixture, error: int) -> None:
    caplog.set_level(logging.INFO)

    async def run() -> None:
        file = FailingFile(path)
        store = opened(path, file=file)
        file.error = error
        store.remember_load("qwen", 2.0)
        await eventually(lambda: file.attempts >= 4)
        assert os.strerror(error) in str(store.degraded)
        assert store.load_seconds("qwen") == 2.0
        file.error = None
        await eventually(lambda: store.degraded is None)
        await store.close()

    asyncio.run(run())
    assert opened(path).load_seconds("qwen") == 2.0
    assert len(events(caplog)) == 2  # not one per attempt


def test_retries_come_more_and_more_seldom(path: Path) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        file = FailingFile(path)
        file.error = errno.ENOSPC
        times: list[float] = []
        write = file.write
        file.write = lambda data: (times.append(loop.time()), write(data))  # type: ignore[method-assign,assign,func-returns-value]
        store = opened(path, file=file)
        store.remember_load("qwen", 2.0)
        await eventually(lambda: len(times) >= 4)
        await store.close()
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert gaps[0] >= 0.01
        assert gaps[1] >= 0.02
        assert gaps[2] >= 0.04

    asyncio.run(run())


def test_a_really_full_disk_leaves_the_old_file_whole(path: Path) -> None:
    remember(path)
    old = path.read_bytes()
    full = AtomicFile(path)
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from accelerd.system.private_files import AtomicFile\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    AtomicFile(Path(sys.argv[1])).write(b'x' * 10000)\n"
        "except OSError as error:\n"
        "    print(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) == errno.EFBIG
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == ["state.json"]
    full.write(b"new")
    assert path.read_bytes() == b"new"


def test_a_write_that_was_cut_by_a_crash_is_invisible(path: Path) -> None:
    remember(path)
    (path.parent / ".state.json.new").write_bytes(b'{"version": 1, "mod')
    assert opened(path).load_seconds("qwen") == 2.5
    remember(path, seconds=4.0)
    assert os.listdir(path.parent) == ["state.json"]


def test_an_unreadable_directory_is_not_the_end(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.parent.mkdir()
    path.parent.write_text("a file where the directory should be")

    async def run() -> None:
        store = opened(path)
        assert "not a directory" in str(store.degraded)
        store.remember_load("qwen", 1.0)
        await store.flush()
        assert "cannot write" in str(store.degraded)
        path.parent.unlink()
        await store.close()
        assert store.degraded is None

    asyncio.run(run())
    assert opened(path).load_seconds("qwen") == 1.0


def test_a_directory_deleted_while_running_is_made_again(path: Path) -> None:
    async def run() -> None:
        store = opened(path)
        store.remember_load("qwen", 1.0)
        await store.flush()
        shutil.rmtree(path.parent.parent)
        store.remember_load("qwen", 2.0)
        await store.close()
        assert store.degraded is None

    asyncio.run(run())
    assert opened(path).load_seconds("qwen") == 2.0
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_closing_leaves_no_task_and_no_timer(path: Path) -> None:
    async def run() -> None:
        file = FailingFile(path)
        file.error = errno.ENOSPC
        store = opened(path, file=file)
        store.remember_load("qwen", 1.0)
        await eventually(lambda: file.attempts > 0)
        await store.close()
        attempts = file.attempts
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await asyncio.sleep(0.1)  # longer than every retry
        assert file.attempts == attempts

    asyncio.run(run())
