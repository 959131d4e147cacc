"""Who holds which GPU at which level, and what it was before: the levels' accounts. Writes levels only through Gpu.

What is to be restored stands in a file before a level is changed, so that whoever comes after a crash can put it back.
A level that somebody else has changed meanwhile is theirs, and stays.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from accelerd.helper.gpu import Gpu, LevelError, check_arguments, opened

log = logging.getLogger(__name__)

OpenGpu = Callable[[Path, str], AbstractContextManager[Gpu]]
RETRIES = 24  # of a level that cannot be put back; then it stays


@dataclass(frozen=True)
class Lease:
    """The wish of one caller that one GPU be at a level."""

    number: int
    slot: str
    owner: str  # unique on the bus
    uid: int
    pid: int


@dataclass
class Held:
    """A GPU that somebody wants at a level."""

    level: str
    before: str
    leases: dict[int, Lease] = field(default_factory=dict)
    tries: int = 0  # to put it back, once nobody wants it


class Book:
    """See the module's text. Blocking: a few small files."""

    def __init__(self, sys: Path, record: Path, allow_high: Collection[str] = (), open_gpu: OpenGpu = opened) -> None:
        """`allow_high`: slots of discrete cards that may be at "high" all the same."""
        self._sys = sys
        self._record = record
        self._open = open_gpu
        self._allow_high = frozenset(allow_high)
        self._held: dict[str, Held] = {}
        self._owed: dict[str, Held] = {}  # nobody wants it, and it could not be put back yet
        self._last = 0

    def set(self, slot: str, level: str, owner: str, uid: int = 0, pid: int = 0) -> int:
        """The number of the caller's lease: a new one, or the one they have, with the level written again."""
        check_arguments(slot, level)
        with self._open(self._sys, slot) as gpu:
            now = gpu.changeable()
            if level == "high" and slot not in self._allow_high and not gpu.is_apu():
                raise LevelError("Refused", f"{slot} is not part of the processor: high may hold it below its boost")
            held = self._held.get(slot)
            others = [lease for lease in held.leases.values() if lease.owner != owner] if held else []
            if held is not None and others and held.level != level:
                raise LevelError("Busy", f"uid {others[0].uid} holds {slot} at {held.level}")
            before = held.before if held is not None and now == held.level else self._before(slot, now)
            mine = next((lease for lease in held.leases.values() if lease.owner == owner), None) if held else None
            leases = dict(held.leases) if held else {}
            if mine is None:
                self._last += 1
                mine = Lease(self._last, slot, owner, uid, pid)
                leases[mine.number] = mine
            self._held[slot] = Held(level, before, leases)
            owed = self._owed.pop(slot, None)
            try:
                self._write_record()
                if now != level:
                    gpu.set(level)
            except LevelError:
                self._go_back(slot, held, owed)
                raise
        return mine.number

    def release(self, number: int, owner: str) -> None:
        """End a lease; the level goes back with the last one. LevelError NoLease unless it is the caller's own."""
        for slot, held in self._held.items():
            lease = held.leases.get(number)
            if lease is not None and lease.owner == owner:
                del held.leases[number]
                self._settle(slot)
                return
        raise LevelError("NoLease", "you hold no such lease")

    def forget(self, owner: str) -> list[Lease]:
        """The caller has gone; the leases it had."""
        found = [lease for held in self._held.values() for lease in held.leases.values() if lease.owner == owner]
        for lease in found:
            self.release(lease.number, owner)
        return found

    def restore_all(self) -> None:
        """Put everything back, whoever wants it."""
        for slot, held in list(self._held.items()):
            held.leases.clear()
            self._settle(slot)

    def repair(self) -> None:
        """Put back what a helper before this one has changed and left."""
        for slot, (level, before) in self._read_record().items():
            log.warning("an earlier helper has left %s at %s", slot, level)
            self._owed[slot] = Held(level, before)
        self.retry()

    def retry(self) -> bool:
        """Try again to put back what could not be. Is there nothing left of that kind?"""
        for slot, held in list(self._owed.items()):
            self._restore(slot, held)
        return not self._owed

    def leases(self) -> list[tuple[Lease, Held]]:
        return [(lease, held) for held in self._held.values() for lease in held.leases.values()]

    @property
    def owing(self) -> bool:
        return bool(self._owed)

    # --- inside -----------------------------------------------------------------------------------------------

    def _before(self, slot: str, now: str) -> str:
        """What to restore: the level now, unless that is a leftover of our own."""
        owed = self._owed.get(slot)
        return owed.before if owed is not None and owed.level == now else now

    def _go_back(self, slot: str, held: Held | None, owed: Held | None) -> None:
        for table, value in ((self._held, held), (self._owed, owed)):
            if value is None:
                table.pop(slot, None)
            else:
                table[slot] = value
        with contextlib.suppress(LevelError):  # the first failure is the one to tell
            self._write_record()

    def _settle(self, slot: str) -> None:
        held = self._held[slot]
        if not held.leases:
            del self._held[slot]
            self._restore(slot, held)

    def _restore(self, slot: str, held: Held) -> None:
        self._owed.pop(slot, None)
        try:
            with self._open(self._sys, slot) as gpu:
                now = gpu.level()
                if now != held.level:
                    log.info("%s stays at %s, which somebody else has set", slot, now)
                elif now != held.before:
                    gpu.set(held.before)
                    log.info("%s: %s → %s", slot, held.level, held.before)
        except LevelError as error:
            held.tries += 1
            if error.code in ("Busy", "Failed") and held.tries < RETRIES:
                self._owed[slot] = held
            log.warning("cannot put %s back to %s (try %d): %s", slot, held.before, held.tries, error)
        try:
            self._write_record()
        except LevelError as error:
            log.warning("%s", error)

    def _write_record(self) -> None:
        """Before a level changes: what a crash would leave. LevelError Failed."""
        entries = {slot: [held.level, held.before] for slot, held in {**self._owed, **self._held}.items()}
        try:
            if not entries:
                self._record.unlink(missing_ok=True)
                return
            new = self._record.with_suffix(".new")
            new.write_text(json.dumps(entries))
            new.replace(self._record)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise LevelError("Failed", f"cannot note in {self._record} what to restore: {reason}") from None

    def _read_record(self) -> dict[str, tuple[str, str]]:
        found: dict[str, tuple[str, str]] = {}
        try:
            entries = json.loads(self._record.read_text())
            for slot, (level, before) in entries.items():
                check_arguments(slot, level)
                check_arguments(slot, before)
                found[slot] = (level, before)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, TypeError, LevelError) as error:
            log.warning("%s cannot be used: %s", self._record, error)
        return found
