"""What models were measured to need: next time that replaces what was estimated.

Belongs to a Forecast's key (the file, the settings, the engine's build) and the devices of one way to place it. What
was measured of a device replaces the estimate: its memory is allocated in full by the load. Of main memory only what is
more does: pages count there once they are touched. A model that ran out of memory is never given less again until that
is forgotten. Bounded. Does no I/O.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from typing import Annotated, Any, Final

import msgspec
from msgspec.structs import replace

from accelerd.base.sizes import human_size
from accelerd.memory.model import RAM, Forecast, MemoryRequirement

KEPT: Final = 1000  # entries; the one that was used longest ago falls out first
WORTH_WRITING: Final = 1.01  # a peak that grew by less does not have the file written
LONGEST: Final = 500  # characters of a text for people
AT: Final = "@"  # between a forecast's key and the context, where that is not one of its settings
LATEST: Final = 2.5e11  # s since 1970; what no calendar knows is no time

Bytes = Annotated[int, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class LearnedRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of one model, placed in one way."""

    key: str
    devices: tuple[str, ...] = ()
    model: str = ""  # for people
    file: str = ""  # for people
    estimate: dict[str, Bytes] = {}  # by pool, as it was when this was learned
    peak: dict[str, Bytes] = {}  # the most that was seen in use, by pool
    settled: bool = False  # it was seen after its load
    need: Bytes = 0  # it ran out of memory with less, all pools together
    lacked: Bytes = 0  # … with so much
    shortages: Count = 0  # how often it ran out
    runs: Count = 1  # in which it was measured
    at: Annotated[float, msgspec.Meta(ge=0, le=LATEST)] = 0.0  # seconds since 1970, of the last of all this


Ident = tuple[str, tuple[str, ...]]


class Learned:
    """Used on the event loop; every method is quick enough to be called after every look."""

    def __init__(
        self,
        known: Iterable[LearnedRecord],
        save: Callable[[Sequence[LearnedRecord]], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        """`known`: the oldest first. `save` is given all there are whenever they change, and returns at once.

        `now`: seconds since 1970, told to people and used for nothing else.
        """
        self._save = save
        self._now = now
        self._entries: dict[Ident, LearnedRecord] = {(entry.key, entry.devices): entry for entry in known}
        self._stored = dict(self._entries)
        self._estimates: dict[Ident, Mapping[str, int]] = {}  # as `apply` was given them last
        self._begun: dict[Ident, None] = {}  # loaded, and not measured since

    def apply(self, forecast: Forecast) -> Forecast:
        """The forecast with what was learned in place of what was estimated."""
        if not forecast.key:
            return forecast
        return replace(forecast, options=tuple(self._improved(forecast.key, need) for need in forecast.options))

    def loaded(self, key: str, need: MemoryRequirement) -> None:
        """A load has come to its end; what is seen from now on is another run's."""
        if key:
            self._begun[_ident(key, need)] = None
            _bound(self._begun)

    def saw(
        self,
        key: str,
        need: MemoryRequirement,
        peak: Mapping[str, int],
        *,
        settled: bool,
        model: str = "",
        file: str = "",
    ) -> None:
        """The most, by pool, that was seen in use of a model placed as `need` says; may be told after every look.

        `settled`: its load was over; otherwise less than the estimate proves nothing.
        """
        if not key:
            return
        need, peak = need.with_cache(0), _without(need.cache, peak)
        ident, old = self._known(key, need)
        another = old.runs == 0 or ident in self._begun
        self._begun.pop(ident, None)
        known = dict(old.peak)
        if another and RAM in known:  # what one large request took once is forgotten, by half in each run without one
            known[RAM] -= max(0, known[RAM] - peak.get(RAM, 0)) // 2
        peaks = {pool: max(known.get(pool, 0), peak.get(pool, 0)) for pool in sorted({*known, *peak})}
        new = replace(
            old,
            peak={pool: size for pool, size in peaks.items() if size > 0},
            settled=old.settled or settled,
            runs=old.runs + another,
        )
        self._put(ident, new, need, model, file)

    def outgrown(self, key: str, need: MemoryRequirement, total: int, *, model: str = "", file: str = "") -> None:
        """It ran out of memory placed as `need` says: from now on it needs `total` bytes at least, in all pools."""
        if not key:
            return
        need, total = need.with_cache(0), total - need.cache
        ident, old = self._known(key, need)
        estimate = self._estimate(ident, need)
        before = need.total if need.total < total else improved(replace(need, amounts=estimate), old).total
        new = replace(old, need=max(old.need, total), shortages=old.shortages + 1)
        if total > old.need:
            new = replace(new, lacked=min(before, total))
        self._put(ident, new, need, model, file)

    def forget(self, key: str | None = None) -> int:
        """Forget what is known of a key, whatever the devices; None: all. How much that was."""
        gone = [ident for ident in self._entries if key is None or ident[0].partition(AT)[0] == _storable(key)]
        for ident in gone:
            del self._entries[ident]
            self._begun.pop(ident, None)
        if gone:
            self._store_all()
        return len(gone)

    def entries(self) -> tuple[LearnedRecord, ...]:
        """All that is known, the newest first."""
        return tuple(reversed(self._entries.values()))

    # --- inside -----------------------------------------------------------------------------------------------

    def _improved(self, key: str, wanted: MemoryRequirement) -> MemoryRequirement:
        need = wanted.with_cache(0)
        ident = _ident(key, need)
        self._estimates.pop(ident, None)
        self._estimates[ident] = need.amounts
        _bound(self._estimates)
        entry = self._entries.get(ident)
        return wanted if entry is None else improved(need, entry).with_cache(wanted.cache)

    def _estimate(self, ident: Ident, need: MemoryRequirement) -> dict[str, int]:
        """What was estimated, although `need` may be what was learned before."""
        known = self._entries.get(ident)
        if ident in self._estimates:
            found = self._estimates[ident]
        elif known is not None:
            found = known.estimate
        else:
            found = need.amounts
        return {pool: max(0, size) for pool, size in sorted(found.items())}

    def _known(self, key: str, need: MemoryRequirement) -> tuple[Ident, LearnedRecord]:
        ident = _ident(key, need)
        return ident, self._entries.get(ident) or LearnedRecord(key=ident[0], devices=ident[1], runs=0)

    def _put(self, ident: Ident, entry: LearnedRecord, need: MemoryRequirement, model: str, file: str) -> None:
        entry = replace(
            entry,
            model=_text(model) or entry.model,
            file=_text(file) or entry.file,
            estimate=self._estimate(ident, need),
            at=round(min(max(self._now(), 0.0), LATEST)),
        )
        self._entries.pop(ident, None)  # and to the end
        self._entries[ident] = entry
        _bound(self._entries)
        if _differs(self._stored.get(ident), entry):
            self._store_all()

    def _store_all(self) -> None:
        self._stored = dict(self._entries)
        self._save(tuple(self._entries.values()))


def improved(need: MemoryRequirement, entry: LearnedRecord) -> MemoryRequirement:
    """An estimate with what is known of it. Pure."""
    what = "figure in the configuration" if need.declared else "estimate"
    amounts = dict(need.amounts)
    for pool, peak in entry.peak.items():
        # A device where nothing at all was seen is one that could not be read rather than one that is not used.
        replaces = entry.settled and pool != RAM and peak > 0 and not need.declared
        amounts[pool] = peak if replaces else max(amounts.get(pool, 0), peak)
    when = f" ({date.fromtimestamp(entry.at).isoformat()})" if entry.at else ""
    better = need
    if amounts != need.amounts:
        source = f"measured in an earlier run{when}: the {what} was {human_size(need.total)}"
        better = replace(need, amounts=amounts, source=source, shares={})
    if entry.need > better.total:
        source = f"ran out of memory with {human_size(entry.lacked)} in an earlier run{when}: "
        source += f"the {what} was {human_size(need.total)}"
        better = better.scaled(entry.need, source, raised=True)
    return better


def _without(cache: int, peak: Mapping[str, int]) -> Mapping[str, int]:
    """Peaks of use, less what a prompt cache may have had of them."""
    return {**peak, RAM: max(0, peak[RAM] - cache)} if cache and RAM in peak else peak


def _differs(old: LearnedRecord | None, new: LearnedRecord) -> bool:
    """Is it worth writing the file? Not when only the time or the name differs: models that share a file take turns."""
    if old is None or old.peak.keys() != new.peak.keys():
        return True
    if _lasting(old) != _lasting(new):
        return True
    return any(size > old.peak[pool] * WORTH_WRITING for pool, size in new.peak.items())


def _lasting(record: LearnedRecord) -> LearnedRecord:
    return replace(record, peak={}, at=0.0, model="")


def _bound(found: dict[Ident, Any]) -> None:
    while len(found) > KEPT:
        del found[next(iter(found))]


def _ident(key: str, need: MemoryRequirement) -> Ident:
    return _storable(key if need.context is None else f"{key}{AT}{need.context}"), need.devices


def _text(text: str) -> str:
    """For people: of a long path its end tells more."""
    text = _storable(text)
    return text if len(text) <= LONGEST else "…" + text[1 - LONGEST :]


def _storable(text: str) -> str:
    """Names of files may hold bytes that are no text."""
    return text.encode("utf-8", "backslashreplace").decode()
