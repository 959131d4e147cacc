"""What a refresh leaves on disk before it does it, and what becomes of a file that is not ours or not whole."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from accelerd.supervise.homes.containers.refresh_context import LeftoverContainer, PendingRefresh, RefreshRecord
from accelerd.supervise.homes.home import HomeError

BEGUN = PendingRefresh("radv", "a" * 64, "swap", ("qwen",), "boot")


class FullDisk:
    """An AtomicFile on a disk without room."""

    def read(self) -> bytes | None:
        return None

    def write(self, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def set_aside(self) -> str:
        raise OSError(errno.EROFS, "Read-only file system")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "toolboxes.json"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_text(text)


def files(path: Path) -> dict[str, int]:
    """What lies beside it, with modes."""
    return {f.name: f.stat().st_mode & 0o777 for f in path.parent.iterdir()} if path.parent.exists() else {}


def name_on_disk(path: Path) -> str:
    return str(json.loads(path.read_text())["begun"]["name"])


def record(path: Path, proc: Path = Path("/proc")) -> RefreshRecord:
    return RefreshRecord(path, proc)


async def test_the_next_daemon_reads_what_this_one_wrote(path: Path) -> None:
    first = record(path)
    await first.read()
    assert (first.begun, first.left) == (None, ())
    await first.begin(BEGUN)
    await first.leave((LeftoverContainer("b" * 64, "radv-old"),))
    second = record(path)
    await second.read()
    assert (second.begun, second.left) == (BEGUN, (LeftoverContainer("b" * 64, "radv-old"),))
    await second.end()
    third = record(path)
    await third.read()
    assert (third.begun, third.left) == (None, (LeftoverContainer("b" * 64, "radv-old"),))
    assert files(path) == {path.name: 0o600}


async def test_what_stays_the_same_is_not_written(path: Path) -> None:
    first = record(path)
    await first.leave(())
    assert files(path) == {}


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"begun": {"name": 1}}', '{"begun": {"name": "a", "old": "b", "stage": "x"}}', "[" * 100_000],
    ids=["empty", "torn", "half", "another stage", "nested"],
)
async def test_a_torn_or_foreign_file_is_set_aside_and_told(
    path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, text)
    first = record(path)
    await first.read()
    assert first.begun is None
    assert "a refresh that was interrupted is not repaired" in caplog.text
    assert list(files(path)) == [f"{path.name}.corrupt-1"]
    await first.begin(BEGUN)
    assert name_on_disk(path) == "radv"


async def test_a_full_disk_is_an_error_and_changes_nothing(path: Path) -> None:
    first = RefreshRecord(path, Path("/proc"), FullDisk())
    await first.read()
    with pytest.raises(HomeError, match=r"cannot write .*toolboxes.json: No space left on device"):
        await first.begin(BEGUN)
    assert first.begun is None


async def test_a_file_that_cannot_even_be_set_aside_is_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Torn(FullDisk):
        def read(self) -> bytes | None:
            return b"{"

    await RefreshRecord(path, Path("/proc"), Torn()).read()
    assert "Read-only file system" in caplog.text


async def test_a_newer_version_s_file_is_read_for_what_is_known(path: Path) -> None:
    write(path, '{"version": 7, "begun": {"name": "a", "old": "b", "stage": "trial", "more": [1]}, "what": {}}')
    first = record(path)
    await first.read()
    assert first.begun == PendingRefresh("a", "b")


def test_which_start_of_the_machine(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    assert record(tmp_path / "x", proc).boot() == ""
    file = proc / "sys/kernel/random/boot_id"
    file.parent.mkdir(parents=True)
    file.write_text("4f3c\n")
    assert record(tmp_path / "x", proc).boot() == "4f3c"
