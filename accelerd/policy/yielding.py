"""Yielding: who needs the GPUs' memory for something else, and until when: the user, a game, a suspend.

Each has one hold; memory is yielded while there is any, and the user's `resume` ends them all. Tells the scheduler,
which alone knows models. The user's hold survives a restart of accelerd but not of the machine: it is stored in the
runtime directory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from accelerd.base import names
from accelerd.base.decoding import from_json
from accelerd.base.events import EventStream
from accelerd.base.ports import Clock
from accelerd.config.model import ConfigApplied
from accelerd.devices.current_devices import DevicesChanged
from accelerd.devices.model import Device, usable
from accelerd.scheduler.memory_events import MemoryEvents
from accelerd.system.dbus.properties import PropertyWatch
from accelerd.system.private_files import AtomicFile, Unreadable
from accelerd.system.records import NOTICE, event

log = logging.getLogger(__name__)

USER: Final = "person"
GAMEMODE: Final = "gamemode"
SLEEP: Final = "sleep"
RECHECK: Final = 30.0  # s; timers stand still while the machine sleeps, an end by the clock on the wall does not


class YieldChanged(Struct, frozen=True):
    """Published when what is yielded may have changed."""


class YieldReason(msgspec.Struct):
    """Who yields memory, and for how many seconds still. None: until it is ended."""

    who: str
    why: str
    remaining: float | None


class YieldReport(msgspec.Struct, kw_only=True):
    """What is yielded to other programs."""

    what: str  # for people
    pools: list[str] | None  # None: all
    remaining: float | None
    why: str
    holds: list[YieldReason]


class YieldHold(Struct, frozen=True):
    """One reason to yield memory."""

    why: str  # one clause: "accelctl yield", "gamemode: 1 game"
    until: float | None = None  # seconds since boot; None: until released
    everything: bool = False  # main memory too


class _StoredHold(msgspec.Struct):
    """The user's hold on disk."""

    boot: str
    until: float | None
    everything: bool
    version: int = 1


def gpu_pools(devices: Iterable[Device]) -> frozenset[str]:
    """The pools of the GPUs that models run on."""
    return frozenset(device.id for device in usable(devices))


def boot_id(proc: Path) -> str:
    """Identifies this boot of the machine; empty where the kernel does not tell."""
    try:
        return (proc / "sys/kernel/random/boot_id").read_text().strip()
    except OSError as error:
        log.debug("cannot tell one boot from another: %s", error)
        return ""


class Yielding:
    """Subscribes to devices and the configuration; publishes YieldChanged. All methods on the event loop's thread."""

    def __init__(
        self,
        scheduler: MemoryEvents,
        clock: Clock,
        asleep: Callable[[], float],
        devices: Callable[[], Iterable[Device]],
        file: AtomicFile,
        boot: str,
        watch_games: Callable[[Callable[[int], None]], PropertyWatch],
        events: EventStream,
    ) -> None:
        """`asleep()`: seconds suspended since boot; `boot`: names this boot; `watch_games(games)` reports games."""
        self._scheduler = scheduler
        self._clock = clock
        self._asleep = asleep
        self._devices = devices
        self._file = file
        self._boot = boot
        self._watch_games = watch_games
        self._events = events
        self._game_watch: PropertyWatch | None = None
        self._holds: dict[str, YieldHold] = {}
        self._given = False
        self._games = 0
        self._ignored = 0  # games that the user has overruled
        self._timer: asyncio.TimerHandle | None = None
        events.subscribe(DevicesChanged, self.on_devices_changed)
        events.subscribe(ConfigApplied, self.on_config)

    # --- the user ---------------------------------------------------------------------------------------------

    async def ask(self, seconds: float | None = None, *, everything: bool = False, now: bool = False) -> None:
        """Yield memory for so long or until `resume`; replaces what the user asked before."""
        until = self._now() + seconds if seconds is not None else None
        self._holds[USER] = hold = YieldHold("accelctl yield", until, everything)
        self._apply(now=now)
        await self._keep(hold)

    async def resume(self) -> bool:
        """End all holds, whoever has them. False: there were none."""
        held = bool(self._holds)
        self._ignored = self._games
        self._holds.clear()
        self._apply()
        if held:
            await self._keep(None)
        return held

    # --- others -----------------------------------------------------------------------------------------------

    def games(self, count: int) -> None:
        """So many games run. After `resume` only a further one counts."""
        self._games = count
        if count == 0:
            self._ignored = 0
            self._release(GAMEMODE)
        elif count > self._ignored:
            self._ignored = 0
            self._hold(GAMEMODE, YieldHold(f"gamemode: {count} {'game' if count == 1 else 'games'}"))

    def sleeping(self, asleep: bool) -> None:
        """The machine is about to be suspended, or has resumed."""
        if asleep:
            self._hold(SLEEP, YieldHold("the machine is about to be suspended"), now=True)
        else:
            self._release(SLEEP)

    def on_devices_changed(self, event: DevicesChanged) -> None:
        if self._holds:  # a new GPU is yielded too
            self._apply()

    # --- life -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Restore the user's hold from before a restart. Reads a file of a few bytes."""
        kept = self._read()
        if kept is None or kept.boot != self._boot or (kept.until is not None and kept.until <= self._now()):
            return
        self._holds[USER] = YieldHold("accelctl yield", kept.until, kept.everything)
        self._apply()

    def on_config(self, event: ConfigApplied) -> None:
        if GAMEMODE not in event.config.memory.yield_on:
            self._stop_watching_games()
            self._release(GAMEMODE)
        elif self._game_watch is None:
            self._game_watch = self._watch_games(self.games)
            self._game_watch.start()

    def close(self) -> None:
        self._stop_watching_games()
        if self._timer is not None:
            self._timer.cancel()

    def report(self) -> YieldReport | None:
        """None while nothing is yielded."""
        if not self._holds:
            return None
        pools = self._pools()
        return YieldReport(
            what=self.what,
            pools=sorted(pools) if pools is not None else None,
            remaining=self._remaining(self._until()),
            why=self._why(),
            holds=[YieldReason(who, hold.why, self._remaining(hold.until)) for who, hold in self._holds.items()],
        )

    @property
    def what(self) -> str:
        """What is yielded, or would be: for people."""
        pools = self._pools()
        return "all memory" if pools is None else "the GPU" if len(pools) == 1 else f"{len(pools)} GPUs"

    def concerns(self, pool: str) -> bool:
        """Is this pool yielded?"""
        pools = self._pools()
        return bool(self._holds) and (pools is None or pool in pools)

    # --- inside -----------------------------------------------------------------------------------------------

    def _stop_watching_games(self) -> None:
        if self._game_watch is not None:
            self._game_watch.close()
            self._game_watch = None

    def _hold(self, who: str, hold: YieldHold, *, now: bool = False) -> None:
        if self._holds.get(who) != hold:
            self._holds[who] = hold
            self._apply(now=now)

    def _release(self, who: str) -> None:
        if self._holds.pop(who, None) is not None:
            self._apply()

    def _apply(self, *, now: bool = False) -> None:
        self._tell(now=now)
        self._events.publish(YieldChanged())

    def _tell(self, *, now: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._holds:
            if self._given:
                self._given = False
                event(
                    log, NOTICE, "memory is no longer yielded: models may be loaded again", message_id=names.MSG_YIELD
                )
                self._scheduler.resume()
            return
        until, why = self._until(), self._why()
        left = self._remaining(until)
        text = f"{self.what} yielded" + (f" for {left:.0f} s" if left is not None else "") + f": {why}"
        event(log, NOTICE, text, message_id=names.MSG_YIELD, reason=why)
        self._given = True
        end = self._clock.monotonic() + left if left is not None else None
        self._scheduler.yield_memory(self._pools(), end, why, now=now)
        self._arm()

    def _arm(self) -> None:
        ends = [hold.until for hold in self._holds.values() if hold.until is not None]
        if ends:
            wait = min(max(0.0, min(ends) - self._now()), RECHECK)
            self._timer = asyncio.get_running_loop().call_later(wait, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._now()
        over = [who for who, hold in self._holds.items() if hold.until is not None and hold.until <= now]
        for who in over:
            del self._holds[who]
        if over:
            self._apply()
        else:
            self._arm()

    def _now(self) -> float:
        """Seconds since boot, asleep or not."""
        return self._clock.monotonic() + self._asleep()

    def _remaining(self, until: float | None) -> float | None:
        return max(0.0, until - self._now()) if until is not None else None

    def _pools(self) -> frozenset[str] | None:
        """The GPUs; all memory where there is none, or somebody wants all."""
        gpus = gpu_pools(self._devices())
        return None if not gpus or any(hold.everything for hold in self._holds.values()) else gpus

    def _until(self) -> float | None:
        ends = [hold.until for hold in self._holds.values()]
        return None if None in ends else max(end for end in ends if end is not None)

    def _why(self) -> str:
        return "; ".join(hold.why for hold in self._holds.values())

    # --- the file ---------------------------------------------------------------------------------------------

    def _read(self) -> _StoredHold | None:
        try:
            data = self._file.read()
            stored: _StoredHold | None = from_json(data, _StoredHold | None) if data else None
            return stored
        except (OSError, Unreadable, msgspec.DecodeError) as error:
            log.warning("cannot restore the yield from before the restart: %s", error)
            return None

    async def _keep(self, hold: YieldHold | None) -> None:
        """A failure only means that a restart forgets the hold."""
        kept = _StoredHold(self._boot, hold.until, hold.everything) if hold is not None else None
        try:
            await asyncio.to_thread(self._file.write, msgspec.json.encode(kept) + b"\n")
        except OSError as error:
            log.warning("the yield will not survive a restart of accelerd: %s", error)
