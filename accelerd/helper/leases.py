"""Leases of performance levels: who holds which GPU at which level, and the level to restore after that.

Levels are read and written through Gpu only. The level to restore is written to a file before a level is changed, so
that it can be restored after a crash. A level that another program has changed since is not restored.
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
RESTORE_TRIES = 24  # then the level is left as it is


@dataclass(frozen=True)
class LevelLease:
    number: int
    slot: str
    owner: str  # unique name on the bus
    uid: int
    pid: int


@dataclass
class LeasedLevel:
    level: str
    before: str
    leases: dict[int, LevelLease] = field(default_factory=dict)
    tries: int = 0  # to restore it, without leases


class LevelLeases:
    """Blocking: reads and writes a few small files."""

    def __init__(self, sys: Path, record: Path, allow_high: Collection[str] = (), open_gpu: OpenGpu = opened) -> None:
        """`allow_high`: slots of discrete cards that may be set to "high"."""
        self._sys = sys
        self._record = record
        self._open = open_gpu
        self._allow_high = frozenset(allow_high)
        self._held: dict[str, LeasedLevel] = {}
        self._unrestored: dict[str, LeasedLevel] = {}  # without leases, not restored yet
        self._last = 0

    def set(self, slot: str, level: str, owner: str, uid: int = 0, pid: int = 0) -> int:
        """Set the level. Returned: the number of the caller's lease, a new one unless it has one. LevelError."""
        check_arguments(slot, level)
        with self._open(self._sys, slot) as gpu:
            now = gpu.changeable()
            if level == "high" and slot not in self._allow_high and not gpu.is_apu():
                raise LevelError("Refused", f"{slot} is a discrete card: high may keep it below its boost clock")
            held = self._held.get(slot)
            others = [lease for lease in held.leases.values() if lease.owner != owner] if held else []
            if held is not None and others and held.level != level:
                raise LevelError("Busy", f"uid {others[0].uid} holds {slot} at {held.level}")
            before = held.before if held is not None and now == held.level else self._before(slot, now)
            mine = next((lease for lease in held.leases.values() if lease.owner == owner), None) if held else None
            leases = dict(held.leases) if held else {}
            if mine is None:
                self._last += 1
                mine = LevelLease(self._last, slot, owner, uid, pid)
                leases[mine.number] = mine
            self._held[slot] = LeasedLevel(level, before, leases)
            unrestored = self._unrestored.pop(slot, None)
            try:
                self._write_record()
                if now != level:
                    gpu.set(level)
            except LevelError:
                self._go_back(slot, held, unrestored)
                raise
        return mine.number

    def release(self, number: int, owner: str) -> None:
        """End a lease; the last one restores the level. LevelError NoLease if the caller has no such lease."""
        for slot, held in self._held.items():
            lease = held.leases.get(number)
            if lease is not None and lease.owner == owner:
                del held.leases[number]
                self._settle(slot)
                return
        raise LevelError("NoLease", "you have no such lease")

    def forget(self, owner: str) -> list[LevelLease]:
        """End the leases of a caller that has left the bus. Returned: those leases."""
        found = [lease for held in self._held.values() for lease in held.leases.values() if lease.owner == owner]
        for lease in found:
            self.release(lease.number, owner)
        return found

    def restore_all(self) -> None:
        """End all leases and restore all levels."""
        for slot, held in list(self._held.items()):
            held.leases.clear()
            self._settle(slot)

    def repair(self) -> None:
        """Restore what a previous helper has changed and not restored."""
        for slot, (level, before) in self._read_record().items():
            log.warning("a previous helper has left %s at %s", slot, level)
            self._unrestored[slot] = LeasedLevel(level, before)
        self.retry()

    def retry(self) -> bool:
        """Try to restore the levels that could not be restored before. Are all restored?"""
        for slot, held in list(self._unrestored.items()):
            self._restore(slot, held)
        return not self._unrestored

    def all(self) -> list[tuple[LevelLease, LeasedLevel]]:
        return [(lease, held) for held in self._held.values() for lease in held.leases.values()]

    @property
    def unrestored(self) -> bool:
        return bool(self._unrestored)

    # --- inside -----------------------------------------------------------------------------------------------

    def _before(self, slot: str, now: str) -> str:
        """The level to restore: the present one, unless we have set it and not restored it."""
        unrestored = self._unrestored.get(slot)
        return unrestored.before if unrestored is not None and unrestored.level == now else now

    def _go_back(self, slot: str, held: LeasedLevel | None, unrestored: LeasedLevel | None) -> None:
        for table, value in ((self._held, held), (self._unrestored, unrestored)):
            if value is None:
                table.pop(slot, None)
            else:
                table[slot] = value
        with contextlib.suppress(LevelError):  # the first error is the one to report
            self._write_record()

    def _settle(self, slot: str) -> None:
        held = self._held[slot]
        if not held.leases:
            del self._held[slot]
            self._restore(slot, held)

    def _restore(self, slot: str, held: LeasedLevel) -> None:
        self._unrestored.pop(slot, None)
        try:
            with self._open(self._sys, slot) as gpu:
                now = gpu.level()
                if now != held.level:
                    log.info("%s stays at %s: another program has set it", slot, now)
                elif now != held.before:
                    gpu.set(held.before)
                    log.info("%s: %s → %s", slot, held.level, held.before)
        except LevelError as error:
            held.tries += 1
            if error.code in ("Busy", "Failed") and held.tries < RESTORE_TRIES:
                self._unrestored[slot] = held
            log.warning("cannot restore %s to %s (attempt %d): %s", slot, held.before, held.tries, error)
        try:
            self._write_record()
        except LevelError as error:
            log.warning("%s", error)

    def _write_record(self) -> None:
        """Write what must be restored after a crash, before a level changes. LevelError Failed."""
        entries = {slot: [held.level, held.before] for slot, held in {**self._unrestored, **self._held}.items()}
        try:
            if not entries:
                self._record.unlink(missing_ok=True)
                return
            new = self._record.with_suffix(".new")
            new.write_text(json.dumps(entries))
            new.replace(self._record)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise LevelError("Failed", f"cannot write to {self._record} what must be restored: {reason}") from None

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
        except (OSError, ValueError, AttributeError, TypeError, RecursionError, LevelError) as error:
            log.warning("cannot read %s: %s", self._record, error)
        return found
