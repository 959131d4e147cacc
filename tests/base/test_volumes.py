"""What lies on a volume that may not answer is looked at by a process of its own; the rest is looked at directly."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from accelerd.base import volumes
from accelerd.base.volumes import Mount, NoAnswer, Seen, mounts_of
from tests.harness import eventually

FOREVER = 30.0  # s; longer than a test
HANGS = "import signal; signal.pause()"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A mount point, by what the kernel seems to say."""
    folder = tmp_path / "a disk"
    folder.mkdir()
    table = tmp_path / "mountinfo"
    shown = str(folder).replace(" ", "\\040")
    table.write_text(
        f"20 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
        f"30 20 0:9 / {tmp_path}/memory rw - tmpfs tmpfs rw\n"
        f"31 20 0:50 / {shown} rw - autofs systemd-1 rw,fd=3\n"
        f"32 31 0:51 / {shown} rw,relatime shared:2 master:7 - nfs4 nas:/my\\040models rw\n"
        f"no mount\n"
    )
    monkeypatch.setattr(volumes, "MOUNTS", str(table))
    monkeypatch.setattr(volumes, "_known", {})
    monkeypatch.setattr(volumes, "FRESH", 1000.0)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield folder
    looks = list(volumes._looks.values())
    for look in looks:
        look.process.kill()
    eventually(lambda: not volumes._looks, "nobody looks any more")


def test_where_a_path_lies(folder: Path, tmp_path: Path) -> None:
    def linked(name: str, target: str | Path) -> str:
        (tmp_path / name).symlink_to(target)
        return str(tmp_path / name)

    (tmp_path / "memory").mkdir()
    there = [
        str(folder), f"{folder}/", f"{folder}/x/../y", f"{tmp_path}/./a disk/x", linked("absolute", folder),
        linked("relative", "a disk/x.gguf"), linked("up", "memory/../a disk"), f"{tmp_path}/relative/more",
        linked("of a link", "relative"), linked("memory/back", "../absolute"),
    ]  # fmt: skip
    here = [
        "/", str(tmp_path), f"{folder}s", f"{folder}/../x", f"{tmp_path}/not/there", linked("loop", "loop"),
        linked("ping", "pong"), linked("pong", "ping/x"), f"{tmp_path}/memory/x", linked("dangling", "nowhere"),
    ]  # fmt: skip
    found = mounts_of([*there, *here])
    mount = Mount(str(folder), "nfs4", "nas:/my models")
    assert {path: found.get(path) for path in there} == dict.fromkeys(there, mount)
    assert {path: found.get(path) for path in here} == dict.fromkeys(here)
    assert str(mount) == f"{folder} (nfs4, nas:/my models)"


def test_where_the_kernel_says_nothing_all_is_looked_at_directly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "MOUNTS", str(tmp_path / "nothing"))
    assert mounts_of(["/", "/x", str(tmp_path)]) == {}


def test_what_is_found_is_the_same_from_far_and_near(folder: Path, tmp_path: Path) -> None:
    for place in (folder, tmp_path):
        (place / "file").write_text("x")
        (place / "program").write_text("x")
        (place / "program").chmod(0o700)
        os.mkfifo(place / "fifo")
        (place / "loop").symlink_to("loop")
        (place / "new\nline").mkdir()
    names = ["file", "program", "fifo", "loop", "new\nline", "none", "file/x", "x" * 300]
    near = volumes.look([str(tmp_path / name) for name in names], FOREVER)
    far = volumes.look([str(folder / name) for name in names], FOREVER)
    for name in names:
        seen = far[str(folder / name)]
        assert seen == near[str(tmp_path / name)]
        assert isinstance(seen, Seen)
    kinds = {name: seen for name in names if isinstance(seen := far[str(folder / name)], Seen)}
    assert [name for name, seen in kinds.items() if seen.is_dir] == ["new\nline"]
    assert kinds["none"].error == errno.ENOENT
    assert kinds["loop"].error == errno.ELOOP
    volumes.check([str(folder / name) for name in names], FOREVER)  # that something is wrong with it is an answer


def test_one_process_looks_and_everybody_is_told_the_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "LOOK", HANGS)
    first, second = str(folder / "a"), str(folder / "b")
    found = volumes.look([first, second, "/"], 0.05)
    assert isinstance(found["/"], Seen)
    for path in (first, second):
        said = found[path]
        assert isinstance(said, NoAnswer)
        assert said.filename == path
        assert str(said.strerror).startswith(f"{folder} (nfs4, nas:/my models) has not answered for ")
    (look,) = volumes._looks.values()
    with pytest.raises(NoAnswer, match="nas:/my models"):
        volumes.check([second], 0.01)  # that long ago already
    with pytest.raises(NoAnswer, match="nas:/my models"):
        asyncio.run(volumes.answer([str(folder / "c")], 0.01))
    assert list(volumes._looks.values()) == [look]
    # It answers at last: with an error, since the process was killed. The next one is told anew.
    monkeypatch.setattr(volumes, "LOOK", "print('0 16877 1 1')")
    look.process.kill()
    eventually(lambda: not volumes._looks, "it has ended")
    assert volumes.look([str(folder / "c")], FOREVER) == {str(folder / "c"): Seen(0, 0o40755, True, True)}


async def test_who_waits_is_told_as_soon_as_it_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several wait, one goes away meanwhile: the others are told all the same."""
    gate = folder.parent / "gate"
    os.mkfifo(gate)
    monkeypatch.setattr(volumes, "LOOK", f"open({str(gate)!r}).read(); print('0 33188 1 0')")
    path = str(folder / "a")
    waiting = [asyncio.create_task(volumes.answer([path], FOREVER)) for _ in range(3)]
    await asyncio.to_thread(eventually, lambda: volumes._looks, "somebody looks")
    impatient = asyncio.create_task(volumes.answer([path], 0.01))
    with pytest.raises(NoAnswer):
        await impatient
    waiting.pop().cancel()
    assert not any(task.done() for task in waiting)
    await asyncio.to_thread(gate.write_text, "now")
    await asyncio.gather(*waiting)
    assert await asyncio.to_thread(volumes.look, [path], 0.0) == {path: Seen(0, 0o100644, True, False)}


def test_what_was_found_long_ago_is_looked_at_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(folder / "file")
    assert isinstance(seen := volumes.look([path], FOREVER)[path], Seen)
    assert seen.error == errno.ENOENT
    Path(path).write_text("x")
    assert volumes.look([path], FOREVER)[path] == seen, "it has just been looked at"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + volumes.FRESH + 1)
    assert isinstance(again := volumes.look([path], FOREVER)[path], Seen)
    assert (again.error, again.readable) == (0, True)
