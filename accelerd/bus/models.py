"""Models on the bus: what a Snapshot says, as properties, and the few methods of a model.

Asks the scheduler's snapshots and ModelInfo; what a method starts is started as the Manager starts it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from accelerd.base.errors import AccelError
from accelerd.base.names import BUS_NO_OBJECT
from accelerd.bus.job_objects import usec
from accelerd.bus.paths import device_path, job_path
from accelerd.bus.port import Call, Handler
from accelerd.config.model import ModelSpec
from accelerd.control.jobs import Job
from accelerd.instances import Facts
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import Snapshot

CONSTANT: Final = frozenset({"Name"})
OFTEN: Final = frozenset({"MemoryUsed", "InFlight", "Queued", "IdleSinceMonotonicUSec"})  # what requests change
USUAL_LINES: Final = 50
MOST_LINES: Final = 10_000


class Output(Protocol):
    def lines(self, last: int | None = None) -> list[str]: ...


class ModelInfo(Protocol):
    """What may be told of a model's process."""

    def facts(self, instance: int) -> Facts | None: ...
    def output(self, model: str) -> Output: ...
    def load_seconds(self, spec: ModelSpec) -> float | None: ...


class Doing(Protocol):
    """What the Manager does for models."""

    def load(self, name: str, given: Mapping[str, Any]) -> Job: ...
    def unload(self, name: str, mode: str, given: Mapping[str, Any]) -> Job: ...
    async def reset(self, name: str) -> None: ...


class ModelObjects:
    """See the module's text."""

    def __init__(
        self,
        insight: ModelInfo,
        doing: Doing,
        devices: Callable[[], Sequence[str]],
        pinned: Callable[[], frozenset[str]],
        job: Callable[[str], Job | None],
    ) -> None:
        """`devices()`: ids of those on the bus; `pinned()`: models that clients keep loaded; `job(model)`: what is
        under way with it."""
        self._insight = insight
        self._doing = doing
        self._devices = devices
        self._pinned = pinned
        self._job = job

    def properties(self, snapshot: Snapshot) -> dict[str, Any]:
        """All of them."""
        spec, error = snapshot.spec, snapshot.error
        facts = self._insight.facts(snapshot.instance) if snapshot.instance is not None else None
        job = self._job(spec.name)
        waits = snapshot.instance is None and snapshot.state is State.STOPPED and snapshot.queue > 0
        return {
            "Name": spec.name,
            "Aliases": list(spec.aliases),
            "Engine": spec.engine,
            "State": "queued" if waits else str(snapshot.state),
            "StateReason": snapshot.reason,
            "StateSinceMonotonicUSec": usec(snapshot.at - snapshot.since) if snapshot.history else 0,
            "Device": self._device(snapshot.device),
            "NpuContexts": [(self._device(c.device), c.family, c.kind, c.contexts) for c in snapshot.need.claims],
            "MemoryEstimate": snapshot.memory,
            "MemorySource": snapshot.memory_source,
            "MemoryUsed": sum(snapshot.used.values()) if snapshot.instance is not None else 0,
            "MemoryPools": dict(snapshot.held),
            "InFlight": snapshot.leases,
            "Queued": snapshot.queue,
            "IdleSinceMonotonicUSec": usec(snapshot.at - snapshot.idle) if snapshot.idle is not None else 0,
            "IdleTimeoutUSec": usec(spec.idle_timeout),
            "LoadUSec": usec(self._insight.load_seconds(spec)),
            "NextRetryMonotonicUSec": usec(snapshot.at + snapshot.retry_in) if snapshot.retry_in is not None else 0,
            "Pinned": spec.pin or spec.name in self._pinned(),
            "Held": bool(snapshot.holds),
            "Preload": spec.preload,
            "NeedsRestart": snapshot.outdated,
            "Pid": (facts.pid or 0) if facts is not None else 0,
            "Home": (facts.home or "") if facts is not None else "",
            "Place": (facts.place or "") if facts is not None else "",
            "LastError": (str(error.cause), error.message) if error is not None else ("", ""),
            "Job": job_path(job.id) if job is not None else BUS_NO_OBJECT,
        }

    def _device(self, id: str) -> str:
        return device_path(id) if id in self._devices() else BUS_NO_OBJECT

    def handler(self, name: str) -> Handler:
        """The methods of this model."""

        async def load(call: Call) -> tuple[Any, ...]:
            return (job_path(self._doing.load(name, call.args[0]).id),)

        async def unload(call: Call) -> tuple[Any, ...]:
            return (job_path(self._doing.unload(name, *call.args).id),)

        async def reset(call: Call) -> tuple[Any, ...]:
            await self._doing.reset(name)
            return ()

        async def output(call: Call) -> tuple[Any, ...]:
            lines = call.args[0]
            if lines > MOST_LINES:
                raise AccelError("bad_request", f"at most {MOST_LINES} lines can be had at once", param="lines")
            return (self._insight.output(name).lines(last=lines or USUAL_LINES),)

        methods: dict[str, Callable[[Call], Awaitable[tuple[Any, ...]]]] = {
            "Load": load, "Unload": unload, "ResetFailed": reset, "GetOutput": output,
        }  # fmt: skip

        async def handler(call: Call) -> tuple[Any, ...]:
            return await methods[call.method](call)

        return handler
