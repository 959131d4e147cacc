"""Models on the bus: what ModelStatus says, as properties."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from accelerd.base.names import BUS_NO_OBJECT
from accelerd.bus.job_objects import usec
from accelerd.bus.paths import device_path, job_path
from accelerd.control.jobs import Job
from accelerd.control.status import ModelStatus
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import Snapshot

CONSTANT: Final = frozenset({"Name"})
OFTEN: Final = frozenset({"MemoryUsed", "InFlight", "Queued", "IdleSinceMonotonicUSec"})  # what requests change


def properties(
    status: ModelStatus, snapshot: Snapshot, job: Job | None, *, pinned: bool, devices: Collection[str]
) -> dict[str, Any]:
    """All of them. `snapshot` is what the status was made of; `job`: what is under way with the model; `pinned`: by a
    client; `devices`: ids of those on the bus."""

    def device(id: str) -> str:
        return device_path(id) if id in devices else BUS_NO_OBJECT

    def moment(seconds: float | None) -> int:
        """So many seconds from the snapshot, as CLOCK_MONOTONIC; 0 for none."""
        return usec(snapshot.at + seconds) if seconds is not None else 0

    waits = snapshot.instance is None and snapshot.state is State.STOPPED and status.queue > 0
    return {
        "Name": status.name,
        "Aliases": status.aliases,
        "Engine": status.engine,
        "State": "queued" if waits else status.state,
        "StateReason": status.reason,
        "StateSinceMonotonicUSec": moment(-status.since) if snapshot.history else 0,
        "Device": device(status.device),
        "NpuContexts": [(device(one.device), one.family, one.kind, one.contexts) for one in status.claims],
        "MemoryEstimate": status.memory,
        "MemorySource": status.memory_source,
        "MemoryUsed": status.memory_used or 0,
        "MemoryPools": dict(snapshot.held),
        "InFlight": status.leases,
        "Queued": status.queue,
        "IdleSinceMonotonicUSec": moment(-status.idle) if status.idle is not None else 0,
        "IdleTimeoutUSec": usec(status.idle_timeout),
        "LoadUSec": usec(status.load_seconds),
        "NextRetryMonotonicUSec": moment(status.retry_in),
        "Pinned": status.pin or pinned,
        "Held": status.held,
        "Preload": status.preload,
        "NeedsRestart": status.outdated,
        "Pid": status.pid or 0,
        "Home": status.home or "",
        "Place": status.place or "",
        "LastError": (status.error.cause, status.error.message) if status.error is not None else ("", ""),
        "Job": job_path(job.id) if job is not None else BUS_NO_OBJECT,
    }
