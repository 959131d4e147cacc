"""GET /health: that something listens, for everyone; GET /health?full: what it does, for those who may ask for models.

From memory alone: no device and no disk is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from msgspec import Struct

from accelerd.scheduler.record import Snapshot
from accelerd.scheduler.service import Scheduler


class Health(Struct, frozen=True):
    """That something listens."""

    status: Literal["ok"] = "ok"


class QueueHealth(Struct, frozen=True):
    """Requests that wait for their models."""

    waiting: int
    most: int  # scheduler.max_queue


class ModelHealth(Struct, frozen=True):
    """One model. Bytes; `memory` counts as its own, `error` is why it failed the last time."""

    name: str
    state: str
    running: int
    waiting: int
    memory: int
    device: str
    error: str | None


class MemoryHealth(Struct, frozen=True):
    """Memory that models are placed in. Bytes."""

    id: str
    name: str
    size: int
    models: int  # that counts as the models'
    others: int  # in use by other programs
    free: int  # for further models


class DeviceHealth(Struct, frozen=True):
    """One device; `problem` is why models cannot use it."""

    id: str
    kind: Literal["gpu", "npu", "cpu"]
    name: str
    problem: str | None


class FullHealth(Struct, frozen=True):
    """What accelerd is doing."""

    status: Literal["ok"]
    queue: QueueHealth
    models: list[ModelHealth]
    memory: list[MemoryHealth]
    devices: Sequence[DeviceHealth]


OK: Final = Health()


def wants_full(target: bytes) -> bool:
    """Does the query of a request's target say `full`?"""
    return any(word.partition(b"=")[0] == b"full" for word in target.partition(b"?")[2].split(b"&"))


def full_health(scheduler: Scheduler, devices: Sequence[DeviceHealth]) -> FullHealth:
    return FullHealth(
        status="ok",
        queue=QueueHealth(scheduler.queued, scheduler.settings.max_queue),
        models=[_model(snapshot) for snapshot in scheduler.snapshots()],
        memory=[
            MemoryHealth(
                one.pool.id, one.pool.label, one.pool.capacity, one.held, one.foreign + one.spilled, max(0, one.free)
            )
            for one in scheduler.memory.ledger().balances()
        ],
        devices=devices,
    )


def _model(snapshot: Snapshot) -> ModelHealth:
    return ModelHealth(
        snapshot.spec.name,
        str(snapshot.state),
        snapshot.leases,
        snapshot.queue,
        sum(snapshot.held.values()),
        snapshot.device,
        snapshot.error.message if snapshot.error is not None else None,
    )
