"""The home "plain child of the daemon": a process that dies with it. For machines without a user's systemd, and for
models that shall not survive.

Limits of memory need a control group and are not to be had here; the niceness and the OOM score are.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from accelerd.base.cgroup import Cgroup, cgroup_of
from accelerd.config.model import ModelSpec
from accelerd.supervise.homes.home import InstanceRecord, LaunchRequest, MainProcess
from accelerd.supervise.process.processes import InstanceTag
from accelerd.supervise.process.spawn import Spawner, find_program

log = logging.getLogger(__name__)


class ChildHome:
    """A Home; to be used on the main thread, which must be the event loop's."""

    kind = "child"
    survives = False

    def __init__(self, spawner: Spawner | None = None, *, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self._spawner = spawner or Spawner()
        self._proc = proc
        self._kills = OomKills(cgroup_of(proc, sys, "self"))
        self._living = 0

    def place(self, spec: ModelSpec, tag: InstanceTag) -> str:
        return tag.instance

    async def prepare(self, spec: ModelSpec, on_output: Callable[[bytes], None]) -> None:
        """Nothing to do: programs are this machine's."""

    async def start(
        self, launch: LaunchRequest, on_output: Callable[[bytes], None], on_exit: Callable[[], None]
    ) -> MainProcess:
        program = await asyncio.to_thread(find_program, launch.argv[0], launch.env.get("PATH"))
        if not self._living:
            self._kills.forget()

        def exited() -> None:
            self._living -= 1
            if child.status == -signal.SIGKILL and not child.killed and self._kills.claim():
                child.result = "oom-kill"
            on_exit()

        child = self._spawner.spawn((program, *launch.argv[1:]), launch.env, launch.cwd, on_output, exited)
        self._living += 1
        self._weigh(child.pid, launch.spec)
        return child

    async def adopt(
        self, record: InstanceRecord, on_output: Callable[[bytes], None], on_exit: Callable[[], None]
    ) -> MainProcess | None:
        """Nothing here outlives the daemon that started it."""
        return None

    def _weigh(self, pid: int, spec: ModelSpec) -> None:
        """The OOM killer is to pick models before the daemon. What the system forbids is logged and left as it is."""
        score = self._proc / str(pid) / "oom_score_adj"
        settings: list[tuple[str, Callable[[], object]]] = [
            ("oom_score_adjust", lambda: score.write_text(str(spec.oom_score_adjust)))
        ]
        if (nice := spec.nice) is not None:
            settings.append(("nice", lambda: os.setpriority(os.PRIO_PROCESS, pid, nice)))
        for name, apply in settings:
            try:
                apply()
            except OSError as error:  # it has ended already, or asks for more than the daemon itself has
                log.info("%s: cannot set %s: %s", spec.name, name, error.strerror)


class OomKills:
    """The count of OOM kills in the daemon's own control group: each is the reason of one SIGKILL at most."""

    def __init__(self, cgroup: Cgroup | None) -> None:
        self._cgroup = cgroup
        self._claimed = 0

    def forget(self) -> None:
        """What was killed until now was none of ours."""
        self._claimed = self._now()

    def claim(self) -> bool:
        """Was there a kill that nobody has claimed yet?"""
        if self._now() <= self._claimed:
            return False
        self._claimed += 1
        return True

    def _now(self) -> int:
        return (self._cgroup.oom_kills() if self._cgroup is not None else None) or 0
