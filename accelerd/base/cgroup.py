"""The control group of a process, as far as this user may use it: is it empty, kill all of it, count its OOM kills.

Only cgroup v2; everything answers "not known" where there is none. The reads and writes are of kernel memory and quick
enough for the loop's thread.
"""

from __future__ import annotations

from pathlib import Path


def cgroup_of(proc: Path, sys: Path, pid: int | str) -> Cgroup | None:
    """The control group that a process ("self": this one) is in; None when there is none or the process has ended."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return None
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    return find_cgroup(sys, path) if path is not None else None


def find_cgroup(sys: Path, path: str) -> Cgroup | None:
    """The control group with this path ("/user.slice/…"); None when it is not there."""
    for mount in (sys / "fs/cgroup", sys / "fs/cgroup/unified"):
        folder = mount / path.lstrip("/")
        if path and (folder / "cgroup.procs").exists():
            return Cgroup(folder)
    return None


class Cgroup:
    """One directory of cgroupfs. It may vanish at any time: then nothing is in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def populated(self) -> bool | None:
        """Is a process in it or below? None: not known."""
        value = self._values("cgroup.events").get("populated")
        if value is None:
            return None if self.folder.exists() else False
        return value != 0

    def kill(self) -> bool:
        """SIGKILL to all in it and below, forks included. False: not possible here."""
        try:
            (self.folder / "cgroup.kill").write_text("1")
        except FileNotFoundError:
            return not self.folder.exists()  # nothing is left, or a kernel before 5.14
        except OSError:
            return False
        return True

    def oom_kills(self) -> int | None:
        """How many processes in it or below were killed by the OOM killer so far. None: not known."""
        return self._values("memory.events").get("oom_kill")

    def processes(self) -> frozenset[int] | None:
        """Those in it, not those below. None: not known."""
        try:
            return frozenset(int(pid) for pid in (self.folder / "cgroup.procs").read_text().split())
        except (OSError, ValueError):
            return None

    def charged(self) -> dict[str, int]:
        """Bytes that it and what is below are charged for, by kind ("anon", "shmem", "file" …). Empty: not known."""
        return self._values("memory.stat")

    def _values(self, file: str) -> dict[str, int]:
        """Lines "KEY NUMBER"; empty when they cannot be read."""
        try:
            lines = (self.folder / file).read_text().splitlines()
        except OSError:
            return {}
        pairs = (line.split() for line in lines)
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
