"""Servers with several models that end all of them when a load fails: a load begins while nobody there is at work, and
nobody there gets work until it has ended. Pure.

Decides when; starting and serving is Admission's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import ModelRecord, Waiter


def cuts(loading: ModelRecord, other: ModelRecord) -> bool:
    """May a load of `loading` that fails end what `other` is doing?"""
    place, theirs = loading.forecast.shared, other.forecast.shared
    if loading is other or place is None or theirs is None:
        return False
    return place.cuts and place.server == theirs.server


def when_quiet(target: ModelRecord, records: Iterable[ModelRecord], now: float, patience: float) -> float | None:
    """None: `target` may be loaded now. Else the load waits for requests, and asks again at the time that is returned.

    Requests that come later may overtake it for `patience` seconds; then they wait until it is loaded.
    """
    head = target.waiting[0].arrived
    others = [record for record in records if cuts(target, record)]
    if not any(other.active or _serves_before(other, head) for other in others):
        return None
    due = head + patience
    if due > now:
        return due
    for other in others:
        other.served_until = min(other.served_until, head)
    return math.inf


def disturbed(record: ModelRecord, records: Mapping[str, ModelRecord]) -> bool:
    """Is a model being loaded that may cut the requests of this one?"""
    return record.forecast.shared is not None and any(
        other.state is State.STARTING and cuts(other, record) for other in records.values()
    )


def serve_all(records: Mapping[str, ModelRecord]) -> None:
    """Nothing that `when_quiet` has decided holds any more."""
    for record in records.values():
        record.served_until = math.inf


def waits_for_load(
    record: ModelRecord, waiter: Waiter, cutoff: float | None, records: Mapping[str, ModelRecord]
) -> bool:
    """Must a request wait because another model is being loaded, or is to be? `cutoff`: requests after it wait, too."""
    last = record.served_until if cutoff is None else min(record.served_until, cutoff)
    return waiter.arrived > last or disturbed(record, records)


def _serves_before(record: ModelRecord, arrived: float) -> bool:
    """Does a request wait for it that is older?"""
    return record.state is State.READY and bool(record.waiting) and record.waiting[0].arrived < arrived
