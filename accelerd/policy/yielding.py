"""Who wants the memory of the GPUs for something else, and until when: a person, a game, a machine that goes to sleep.

Each of them has one hold; the memory is given up while there is any, and a person's `resume` ends them all. Tells the
scheduler, which alone knows models. A person's hold survives a restart of accelerd, never one of the machine: it is
kept in the runtime directory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from accelerd.base import names
from accelerd.base.ports import Clock
from accelerd.devices.choice import COMPUTE
from accelerd.devices.model import Device
from accelerd.system.records import NOTICE, event
from accelerd.system.statefile import FileStore, Unreadable

log = logging.getLogger(__name__)

PERSON: Final = "person"
RECHECK: Final = 30.0  # s; timers stand still while the machine sleeps, an end by the clock on the wall does not


@dataclass(frozen=True)
class Hold:
    """One wish."""

    why: str  # one clause: "accelctl yield", "gamemode: 1 game"
    until: float | None = None  # seconds since boot; None: until it is let go
    everything: bool = False  # main memory too


class _Kept(msgspec.Struct):
    """A person's hold on disk."""

    boot: str
    until: float | None
    everything: bool
    version: int = 1


class Scheduler(Protocol):
    """What is asked of it. `until` in monotonic seconds; pools None: all."""

    def yield_memory(self, pools: frozenset[str] | None, until: float | None, why: str, *, now: bool) -> None: ...
    def resume(self) -> None: ...


class Watch(Protocol):
    """A source of a hold that is not a person."""

    def start(self) -> None: ...
    def close(self) -> None: ...


def gpu_pools(devices: Iterable[Device]) -> frozenset[str]:
    """The pools of the GPUs that models run on."""
    return frozenset(d.id for d in devices if d.kind == "gpu" and d.problem is None and d.driver in COMPUTE)


def boot_id(proc: Path) -> str:
    """Names this run of the machine; empty where the kernel does not tell."""
    try:
        return (proc / "sys/kernel/random/boot_id").read_text().strip()
    except OSError as error:
        log.debug("cannot tell one boot from another: %s", error)
        return ""


class Yielding:
    """See the module's text. All methods on the loop's thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        clock: Clock,
        asleep: Callable[[], float],
        gpus: Callable[[], frozenset[str]],
        file: FileStore,
        boot: str,
        sources: Callable[[Yielding], Mapping[str, Callable[[], Watch]]] = lambda yielding: {},
    ) -> None:
        """`asleep()`: seconds suspended since boot; `gpus()`: the pools of GPUs; `sources`: what may ask, by name."""
        self._scheduler = scheduler
        self._clock = clock
        self._asleep = asleep
        self._gpus = gpus
        self._file = file
        self._boot = boot
        self._sources = sources(self)
        self._watches: dict[str, Watch] = {}
        self._holds: dict[str, Hold] = {}
        self._given = False
        self._games = 0
        self._ignored = 0  # games that a person has overruled
        self._timer: asyncio.TimerHandle | None = None
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Called whenever what is given up may be something else."""
        self._listeners.append(listener)

    # --- a person ---------------------------------------------------------------------------------------------

    async def ask(self, seconds: float | None = None, *, everything: bool = False, now: bool = False) -> None:
        """A person wants the memory, for so long or until `resume`; replaces what they asked before."""
        until = self._now() + seconds if seconds is not None else None
        self._holds[PERSON] = hold = Hold("accelctl yield", until, everything)
        self._apply(now=now)
        await self._keep(hold)

    async def resume(self) -> bool:
        """A person has the models back, whoever else holds the memory. False: nobody did."""
        held = bool(self._holds)
        self._ignored = self._games
        self._holds.clear()
        self._apply()
        if held:
            await self._keep(None)
        return held

    # --- others -----------------------------------------------------------------------------------------------

    def games(self, count: int) -> None:
        """So many games run. After a person's `resume` only a further one counts."""
        self._games = count
        if count == 0:
            self._ignored = 0
            self._release("gamemode")
        elif count > self._ignored:
            self._ignored = 0
            self._hold("gamemode", Hold(f"gamemode: {count} {'game' if count == 1 else 'games'}"))

    def sleeping(self, asleep: bool) -> None:
        """The machine is about to sleep, or has woken."""
        if asleep:
            self._hold("sleep", Hold("the machine goes to sleep"), now=True)
        else:
            self._release("sleep")

    def devices_changed(self) -> None:
        """A GPU that has come is given up too."""
        if self._holds:
            self._apply()

    # --- life -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Go on with what a person asked of an accelerd before. Reads a file of a few bytes."""
        kept = self._read()
        if kept is None or kept.boot != self._boot or (kept.until is not None and kept.until <= self._now()):
            return
        self._holds[PERSON] = Hold("accelctl yield", kept.until, kept.everything)
        self._apply()

    def configure(self, wanted: Iterable[str]) -> None:
        """Watch these sources, and no other."""
        wanted = set(wanted)
        for name in [name for name in self._watches if name not in wanted]:
            self._watches.pop(name).close()
            self._release(name)
        for name, make in self._sources.items():
            if name in wanted and name not in self._watches:
                self._watches[name] = watch = make()
                watch.start()

    def close(self) -> None:
        for watch in self._watches.values():
            watch.close()
        self._watches.clear()
        if self._timer is not None:
            self._timer.cancel()

    def report(self) -> dict[str, Any] | None:
        """For `status`: {"what", "pools", "remaining", "why", "holds"}; None while nothing is given up."""
        if not self._holds:
            return None
        pools = self._pools()
        return {
            "what": self.what,
            "pools": sorted(pools) if pools is not None else None,
            "remaining": self._remaining(self._until()),
            "why": self._why(),
            "holds": [
                {"who": who, "why": hold.why, "remaining": self._remaining(hold.until)}
                for who, hold in self._holds.items()
            ],
        }

    @property
    def what(self) -> str:
        """What is given up, or would be: for people."""
        pools = self._pools()
        return "all memory" if pools is None else "the GPU" if len(pools) == 1 else f"{len(pools)} GPUs"

    def concerns(self, pool: str) -> bool:
        """Is this pool given up?"""
        pools = self._pools()
        return bool(self._holds) and (pools is None or pool in pools)

    # --- inside -----------------------------------------------------------------------------------------------

    def _hold(self, who: str, hold: Hold, *, now: bool = False) -> None:
        if self._holds.get(who) != hold:
            self._holds[who] = hold
            self._apply(now=now)

    def _release(self, who: str) -> None:
        if self._holds.pop(who, None) is not None:
            self._apply()

    def _apply(self, *, now: bool = False) -> None:
        """Tell the scheduler what holds, then whoever listens."""
        self._tell(now=now)
        for listener in self._listeners:
            listener()

    def _tell(self, *, now: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._holds:
            if self._given:
                self._given = False
                event(log, NOTICE, "the memory that was given up is accelerd's again", message_id=names.MSG_YIELD)
                self._scheduler.resume()
            return
        until, why = self._until(), self._why()
        left = self._remaining(until)
        text = f"{self.what} given up" + (f" for {left:.0f} s" if left is not None else "") + f": {why}"
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
        gpus = self._gpus()
        return None if not gpus or any(hold.everything for hold in self._holds.values()) else gpus

    def _until(self) -> float | None:
        ends = [hold.until for hold in self._holds.values()]
        return None if None in ends else max(end for end in ends if end is not None)

    def _why(self) -> str:
        return "; ".join(hold.why for hold in self._holds.values())

    # --- the file ---------------------------------------------------------------------------------------------

    def _read(self) -> _Kept | None:
        try:
            data = self._file.read()
            return msgspec.json.decode(data, type=_Kept | None) if data else None
        except (OSError, Unreadable, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("cannot read what an accelerd before was asked to give up: %s", error)
            return None

    async def _keep(self, hold: Hold | None) -> None:
        """What fails here costs a restart's memory only."""
        kept = _Kept(self._boot, hold.until, hold.everything) if hold is not None else None
        try:
            await asyncio.to_thread(self._file.write, msgspec.json.encode(kept) + b"\n")
        except OSError as error:
            log.warning("what is given up will not survive a restart of accelerd: %s", error)
