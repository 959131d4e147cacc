"""Files on volumes that may never answer: a network share, an automounter, a dying disk.

A system call there may never return, and its thread cannot even be killed: a process with such a thread never ends. So
nothing looks at a file on another volume than the home directory's before a small process of its own has looked; while
that one hangs no other is started for the volume, and who asks is told the volume's name. At the end of this process
they are killed and nobody waits for them; `telling` is for whoever else would, as systemd. What lies on the same volume
as the home directory is looked at directly.
"""

from __future__ import annotations

import asyncio
import atexit
import errno
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

MOUNTS: Final = "/proc/self/mountinfo"
OF_THE_KERNEL: Final = frozenset({"tmpfs", "ramfs", "devtmpfs", "proc", "sysfs", "cgroup2"})  # they always answer
PATIENCE: Final = 5.0  # s that a volume has to answer where nothing else waits
HUNG: Final = 1.0  # s after which a process that looks is told of as one that may never end
FRESH: Final = 2.0  # s that an answer holds
MOST_KNOWN: Final = 4096  # paths
LINKS: Final = 40  # as in the kernel
# For each path: an error number, or 0, the mode, and whether the user may read and run it. What is read first is read.
LOOK: Final = """
import os, stat, sys
for path in sys.argv[1:]:
    try:
        mode = os.stat(path).st_mode
        os.statvfs(path)
        may = os.access(path, os.R_OK), os.access(path, os.X_OK)
        if may[0] and stat.S_ISREG(mode):
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
            os.read(fd, 4096)
            os.close(fd)
        elif may[0] and may[1] and stat.S_ISDIR(mode):
            next(os.scandir(path), None)
        print(0, mode, *map(int, may))
    except OSError as error:
        print(error.errno or 5, 0, 0, 0)
"""


class NoAnswer(OSError):
    """A volume that does not answer. `strerror` names it."""


@dataclass(frozen=True)
class Mount:
    point: str
    kind: str  # "nfs4", "fuse.sshfs"
    source: str  # "server:/export", "/dev/sdb1"

    def __str__(self) -> str:
        return f"{self.point} ({self.kind}, {self.source})"


@dataclass(frozen=True)
class Seen:
    """What a path is."""

    error: int = 0  # an error number; 0: it is there
    mode: int = 0
    readable: bool = False
    runnable: bool = False

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True)
class _Look:
    """A process that looks at paths of one mount."""

    mount: Mount
    began: float
    paths: tuple[str, ...]
    process: subprocess.Popen[str]
    done: Future[None]


_lock = threading.Lock()
_looks: dict[str, _Look] = {}  # by mount point: those that have not ended
_known: dict[str, tuple[float, Seen]] = {}  # by path: when it was looked at
_listeners: list[Callable[[int], object]] = []


def look(paths: Iterable[str], within: float = PATIENCE) -> dict[str, Seen | NoAnswer]:
    """What each path is, or that its volume has not answered for so many seconds. Blocks for no longer."""
    wanted, until = {*paths}, time.monotonic() + within
    while pending := [one for one in _begin(wanted) if _patience(one, within, until) > 0]:
        wait([one.done for one in pending], max(_patience(one, within, until) for one in pending))
    return _found(wanted)


def which(name: str, path: str, within: float = PATIENCE) -> str | None:
    """A program on PATH, whose folders on volumes that do not answer are left out. Blocking."""
    import shutil  # here, because few ask

    folders = [folder for folder in path.split(os.pathsep) if folder]
    seen = look(folders, within)
    there = [folder for folder in folders if not isinstance(seen[folder], NoAnswer)]
    return shutil.which(name, path=os.pathsep.join(there))


def check(paths: Iterable[str], within: float = PATIENCE) -> None:
    """NoAnswer if the volume of one of the paths has not answered for so many seconds. Blocks for no longer."""
    _raise(look(paths, within))


async def answer(paths: Iterable[str], within: float) -> None:
    """The same for the event loop; no thread waits."""
    wanted, until = {*paths}, time.monotonic() + within
    while True:
        looks = await asyncio.to_thread(_begin, wanted)
        pending = [one for one in looks if _patience(one, within, until) > 0]
        if not pending:
            break
        futures = [asyncio.wrap_future(one.done) for one in pending]
        await asyncio.wait(futures, timeout=max(_patience(one, within, until) for one in pending))
    _raise(await asyncio.to_thread(_found, wanted))


@contextmanager
def telling(listener: Callable[[int], object]) -> Iterator[None]:
    """Tell it of every process that hangs, by its pid, in a thread."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def looking() -> list[int]:
    """The processes that look now, whether they hang or not."""
    with _lock:
        return [one.process.pid for one in _looks.values()]


def mounts_below(folder: str) -> list[str]:
    """Where other volumes are mounted in it, at any depth. Touches none."""
    return [point for point in _mounts() if point.startswith(os.path.join(os.path.abspath(folder), ""))]


def mounts_of(paths: Iterable[str]) -> dict[str, Mount]:
    """Where paths lie, after their links; those on a volume that always answers are left out. Touches no other."""
    mounts = _mounts()
    own = {"/", _longest(mounts, os.path.realpath(os.path.expanduser("~"))).point}
    own |= {point for point, mount in mounts.items() if mount.kind in OF_THE_KERNEL}
    return {path: mount for path in paths if (mount := _mount_of(path, mounts, own)) is not None}


def _mount_of(path: str, mounts: dict[str, Mount], own: Collection[str]) -> Mount | None:
    rest, here, links = _steps(os.path.abspath(path)), "/", 0
    while rest:
        step = os.path.normpath(os.path.join(here, rest.pop(0)))
        mount = _longest(mounts, step)
        if mount.point not in own:
            return mount
        try:
            target = os.readlink(step)
        except OSError:
            here = step  # no link, or not there
            continue
        links += 1
        if links > LINKS:
            return None
        rest = [*_steps(target), *rest]
        here = "/" if os.path.isabs(target) else here
    return None


def _steps(path: str) -> list[str]:
    return [step for step in path.split("/") if step]


def _mounts() -> dict[str, Mount]:
    """By mount point. One that lies over another is the one."""
    found = {"/": Mount("/", "", "")}
    try:
        with open(MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return found
    for line in lines:  # "36 35 98:0 / /mnt rw,noatime shared:1 - ext4 /dev/sdb1 rw"
        fields = line.split(" ")
        if "-" in fields[6:]:
            kind, source = fields[fields.index("-", 6) + 1 :][:2]
            point = _plain(fields[4])
            found[point] = Mount(point, kind, _plain(source))
    return found


def _plain(field: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field


def _longest(mounts: dict[str, Mount], path: str) -> Mount:
    while path not in mounts:
        path = os.path.dirname(path)
    return mounts[path]


# --- looking ----------------------------------------------------------------------------------------------------


def _begin(wanted: Collection[str]) -> Sequence[_Look]:
    """Look at what is not known, and return the processes that do. Blocks for moments."""
    now = time.monotonic()
    missing = [path for path in wanted if (known := _known.get(path)) is None or now - known[0] > FRESH]
    by_mount: dict[Mount, list[str]] = {}
    mounts = mounts_of(missing)
    for path in missing:
        if path in mounts:
            by_mount.setdefault(mounts[path], []).append(path)
        else:
            _learn(path, _look_here(path))
    return [_look_there(mount, paths) for mount, paths in by_mount.items()]


def _look_here(path: str) -> Seen:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return Seen(error.errno or errno.EIO)
    return Seen(0, mode, os.access(path, os.R_OK), os.access(path, os.X_OK))


def _look_there(mount: Mount, paths: Sequence[str]) -> _Look:
    with _lock:
        running = _looks.get(mount.point)
        if running is not None:
            return running
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", LOOK, *(os.path.join(os.getcwd(), path) for path in paths)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd="/",
        )  # fmt: skip
        found = _looks[mount.point] = _Look(mount, time.monotonic(), tuple(paths), process, Future())
        found.done.set_running_or_notify_cancel()  # nobody who stops waiting cancels it
    threading.Thread(target=_follow, args=(found,), name=f"look at {mount.point}", daemon=True).start()
    return found


def _follow(one: _Look) -> None:
    try:
        out, _ = one.process.communicate(timeout=HUNG)
    except subprocess.TimeoutExpired:
        for listener in list(_listeners):
            listener(one.process.pid)
        out, _ = one.process.communicate()
    for path, line in zip(one.paths, out.splitlines(), strict=False):
        error, mode, readable, runnable = map(int, line.split())
        _learn(path, Seen(error, mode, bool(readable), bool(runnable)))
    for path in one.paths[out.count("\n") :]:  # it was killed
        _learn(path, Seen(errno.EIO))
    with _lock:
        del _looks[one.mount.point]
    one.done.set_result(None)


def _learn(path: str, seen: Seen) -> None:
    while len(_known) >= MOST_KNOWN:
        _known.pop(next(iter(_known)), None)
    _known[path] = time.monotonic(), seen


def _patience(one: _Look, within: float, until: float) -> float:
    """How long its process is still waited for: one that has hung for so long already is not."""
    return min(one.began + within, until) - time.monotonic()


def _found(wanted: Collection[str]) -> dict[str, Seen | NoAnswer]:
    found: dict[str, Seen | NoAnswer] = {}
    mounts = mounts_of(wanted)
    with _lock:
        looks = dict(_looks)
    for path in wanted:
        if path in mounts and (hanging := looks.get(mounts[path].point)) is not None:
            age = time.monotonic() - hanging.began
            text = f"{hanging.mount} has not answered for {age:.1f} s"
            found[path] = NoAnswer(errno.ETIMEDOUT, text, path)
        else:
            found[path] = _known[path][1] if path in _known else Seen(errno.EIO)
    return found


def _raise(found: dict[str, Seen | NoAnswer]) -> None:
    for one in found.values():
        if isinstance(one, NoAnswer):
            raise one


@atexit.register
def _end() -> None:
    for one in list(_looks.values()):
        one.process.kill()
