"""Disturbs daemons at random for minutes and counts what is left: `python -m tests.chaos [--minutes N] [--seed S]`.

Two daemons, each under a `systemd --user` of its own. One has models in every home that this machine has, and is
killed, too. Nothing ends the other: its memory is watched. The exit status is 0 if nothing is left of all that and the
memory has not grown. A seed gives the same disturbances again, but not at the same moments.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil

from tests.chaos.disturbances import HOMES, DisturbedContainerWorld, DisturbedWorld
from tests.daemon.container_service import container_service
from tests.daemon.service import Service, ended
from tests.daemon.test_toolbox_rounds import kinds
from tests.harness import eventually
from tests.system.containers import PROGRAMS, container_manager_for_session, program
from tests.system.systemd_user import UserManager, private_manager, session_manager

SETTLED = 5  # minutes after which memory should no longer grow
GROWTH = 1.1  # by which it may


@dataclass
class Run:
    """One world, disturbed in a thread of its own."""

    name: str
    world: DisturbedWorld
    rows: list[tuple[float, int]] = field(default_factory=list)  # minute, resident bytes
    trouble: str = ""
    left: dict[str, int] = field(default_factory=dict)

    def play(self, minutes: float) -> None:
        try:
            self.world.warm_up()
            first = self.world.descriptors()
            began = time.monotonic()
            while (passed := (time.monotonic() - began) / 60) < minutes:
                if passed >= len(self.rows):
                    self.note(passed)
                self.world.play()
            self.left = self.world.counts()
            with contextlib.suppress(AssertionError):  # a connection may be on its way out
                eventually(lambda: not self.world.descriptors() - first, "no more descriptors")
            more = self.world.descriptors() - first
            self.left |= {f"descriptors of {what}": count for what, count in more.items()} or {"descriptors": 0}
            self.note(minutes)
            self.left |= self.world.left()
        except BaseException:  # the other world goes on, and what was seen so far is told
            self.trouble = traceback.format_exc()
        self.left["tracebacks in the log"] = self.world.service.output().count("Traceback")

    def note(self, minute: float) -> None:
        daemon = psutil.Process(int(self.world.service.status()["pid"]))
        memory, deeds = daemon.memory_info().rss, len(self.world.done)
        self.rows.append((minute, memory))
        counts = f"{daemon.num_fds():11} {daemon.num_threads():7}"
        print(f"{self.name:8} {minute:6.1f} {deeds:12} {memory / 1e6:6.1f} MB {counts}", flush=True)

    def verdict(self) -> list[str]:
        """What is wrong."""
        found = [f"{self.name}: {count} {what} left" for what, count in self.left.items() if count > 0]
        return found + ([f"{self.name}: {self.trouble}"] if self.trouble else [])


def grown(run: Run, most: float) -> list[str]:
    """Has the memory of a daemon that lasted grown by more than that after SETTLED minutes?"""
    settled = [memory for minute, memory in run.rows if minute >= SETTLED]
    if not settled:
        print(f"a run of {SETTLED} minutes and more tells whether memory grows")
        return []
    factor = settled[-1] / settled[0]
    text = f"memory at the end is {factor:.2f} times that of minute {SETTLED}"
    print(text)
    return [f"{run.name}: {text}"] if factor > most else []


@contextlib.contextmanager
def manager() -> Iterator[UserManager]:
    yield from private_manager() if os.geteuid() == 0 else session_manager()


@contextlib.contextmanager
def worlds(seed: int) -> Iterator[list[Run]]:
    with contextlib.ExitStack() as stack:
        steady = stack.enter_context(ended(Service(stack.enter_context(manager()))))
        runs = [Run("steady", DisturbedWorld(steady, HOMES, tcp=True, seed=seed, lasting=True))]
        missing = [name for name in PROGRAMS if not program(name)]
        if missing:
            print(f"no toolbox and no container: {', '.join(missing)} not found")
            killed = stack.enter_context(ended(Service(stack.enter_context(manager()))))
            runs.append(Run("killed", DisturbedWorld(killed, HOMES, tcp=False, seed=seed)))
        else:
            containers = stack.enter_context(container_manager_for_session())
            boxes = stack.enter_context(contextlib.contextmanager(container_service)(containers))
            models = kinds(boxes) | HOMES
            runs.append(Run("killed", DisturbedContainerWorld(boxes, models, tcp=False, seed=seed)))
            runs[-1].world.begin(environment=boxes.with_distrobox())
        for run in runs:
            if not run.world.service.units:
                run.world.begin()
        yield runs


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/chaos/run", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--growth", type=float, default=GROWTH, help="what memory may grow by after minute 5")
    args = parser.parse_args()
    print(f"seed {args.seed}, {args.minutes:g} minutes", flush=True)
    wrong: list[str] = ["it did not begin"]
    with contextlib.ExitStack() as stack:
        runs = stack.enter_context(quiet_end(worlds(args.seed), wrong))
        print("daemon   minute disturbances   memory descriptors threads")
        threads = [threading.Thread(target=run.play, args=(args.minutes,), name=run.name) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for run in runs:
            starts = run.world.service.site.spawns()
            left = ", ".join(f"{count} {what}" for what, count in run.left.items())
            print(f"{run.name}: {len(run.world.done)} disturbances, {starts} starts of engines; left: {left}")
        wrong[:] = [line for run in runs for line in run.verdict()] + grown(runs[0], args.growth)
        print("\n".join(wrong) or "nothing is left, and nothing has grown")
    return 1 if wrong else 0


@contextlib.contextmanager
def quiet_end(context: contextlib.AbstractContextManager[list[Run]], wrong: list[str]) -> Iterator[list[Run]]:
    """The output of the daemons, which a world prints at its end, is shown only if something is wrong."""
    with contextlib.ExitStack() as stack:
        runs = stack.enter_context(context)
        try:
            yield runs
        finally:
            with contextlib.redirect_stdout(sys.stdout if wrong else io.StringIO()):
                stack.close()


if __name__ == "__main__":
    sys.exit(main())
