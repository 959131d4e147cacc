"""The contract between `scheduler` and `supervise`, which do not import each other.

`Supervisor.start` returns at once; what happens afterwards arrives as one `ready` at most and then exactly one `gone`
for an instance. `gone` means that no process of the instance is left.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from accelerd.base.exits import Cause, Exit
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Endpoint, LaunchPlan
from accelerd.memory.model import MemoryRequirement


class Listener(Protocol):
    """Is told what happens to an instance, on the event loop's thread."""

    def instance_ready(self, instance: int, endpoint: Endpoint, secret: str) -> None: ...
    def instance_gone(self, instance: int, exit: Exit) -> None: ...
    def instance_killing(self, instance: int) -> None:
        """SIGTERM's grace has passed and SIGKILL was sent."""

    def instance_probed(self, instance: int, ok: bool) -> None:
        """The outcome of `probe`. What follows from it is the listener's decision."""

    def instance_asleep(self, instance: int, trouble: str) -> None:
        """The outcome of `sleep`; `trouble`: why it is not asleep, or ""."""

    def instance_awake(self, instance: int, trouble: str) -> None:
        """The outcome of `wake`; `trouble`: why it is not ready, or ""."""


class InstanceInfo(Struct, frozen=True):
    """What is known of a live instance right now."""

    model: str
    pid: int | None  # the engine's own process, once spawned
    started: float  # monotonic seconds
    plan: LaunchPlan | None  # None while it is being made
    home: str | None = None  # "systemd", "toolbox", …, once chosen
    place: str | None = None  # what it is called there: the unit, the container; None: it has no name of its own


class InstanceFacts(Protocol):
    """Who knows live instances."""

    def facts(self, instance: int) -> InstanceInfo | None: ...


class Supervisor(Protocol):
    """Runs the processes. All calls return at once."""

    def start(self, instance: int, spec: ModelSpec, placed: MemoryRequirement) -> None:
        """`placed`: the memory it is given, and where."""

    def adopt(self, instance: int, spec: ModelSpec, found: object) -> None:
        """Take over what an earlier daemon started, an entry of `ProcessSupervisor.survivors()`; then as `start`."""

    def stop(self, instance: int, reason: Cause = Cause.STOPPED) -> None:
        """End it, in whatever phase it is; a second call is ignored. `instance_gone` follows."""

    def probe(self, instance: int, *, thorough: bool = False) -> None:
        """Find out whether it works; `instance_probed` follows unless the instance is gone first.

        `thorough`: by a tiny request, if that costs no client its cached prompt; else perhaps without.
        """

    def sleep(self, instance: int) -> None:
        """Have its weights moved to main memory; `instance_asleep` follows unless the instance is gone first."""

    def wake(self, instance: int) -> None:
        """Have them moved back; `instance_awake` follows unless the instance is gone first."""
