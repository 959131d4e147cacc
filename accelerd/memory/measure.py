"""What is used of every pool: by each model, and by strangers. One look at a time, blocking, to be run in a thread.

Asks the devices and /proc, and remembers between looks what is dear to ask for: who the strangers are, and the exact
shares of processes. Decides nothing; who belongs to which instance it is told.

Main memory is read before what is ours of it: while a model loads, strangers may seem to have a little less than they
have, never more. Others' use of a GPU without memory of its own is in the GPU's figure and in that of main memory, as
`Ledger` expects it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from accelerd.base.ports import Clock, Roots
from accelerd.config.model import ConfigApplied
from accelerd.devices.fdinfo import MemoryHolder
from accelerd.devices.model import Device
from accelerd.devices.observer import DeviceObserver, DeviceStatus
from accelerd.memory.main_memory import MainMemoryUse, largest, read_main_memory, usual_reserve
from accelerd.memory.model import RAM, ForeignUser, MemorySnapshot, Pool
from accelerd.memory.psi import read_stall
from accelerd.memory.regions import DeviceMemory, DeviceUse, part, pool_of, shape_of
from accelerd.memory.resident import ResidentMemory, Residents

GPU_RESERVE: Final = 256 << 20
MOST_NAMED: Final = 20
MOVED: Final = 32 << 20  # bytes: strangers whose figure moved by more are worth looking for …
LOOK_AROUND: Final = 5.0  # s until they are looked for in any case …
NOT_AGAIN: Final = 1.0  # … and from one time to the next at least: it means to read every process
COUNT_MAIN: Final = 10.0  # s between two looks at every process's share of main memory


class _Device(Struct, frozen=True):
    """One device in one look."""

    look: DeviceStatus
    shape: DeviceMemory
    parts: Mapping[int, DeviceUse]  # what each instance holds through it

    @property
    def foreign(self) -> int | None:
        """None: the driver does not tell what is used."""
        if self.shape.used is None or self.look.readings.asleep:
            return None
        return max(0, self.shape.used - sum(one.device for one in self.parts.values()))


class Meter:
    """`observer` must be used by nobody else."""

    def __init__(
        self,
        roots: Roots,
        clock: Clock,
        observer: DeviceObserver,
        *,
        reserve: int | None = None,
        gpu_reserve: int = GPU_RESERVE,
    ) -> None:
        """`reserve`: bytes of main memory that nobody is given; None: as `usual_reserve` has it."""
        self._roots = roots
        self._clock = clock
        self._observer = observer
        self._reserve = reserve
        self._gpu_reserve = gpu_reserve
        self._residents = Residents(roots, clock)
        self._shapes: dict[str, DeviceMemory] = {}
        self._before: dict[str, int] = {}  # strangers' bytes by device, while all of ours there could be told
        self._strangers: dict[str, tuple[MemoryHolder, ...]] = {}
        self._looked_around: tuple[float, frozenset[int], dict[str, int]] | None = None  # when, instances, strangers
        self._in_main: tuple[float, list[ForeignUser]] | None = None
        self.untold: Mapping[str, str] = {}  # devices that make no pool, by id, and why

    def on_config(self, event: ConfigApplied) -> None:
        """Use its reserves from the next look on."""
        self._reserve, self._gpu_reserve = event.config.memory.reserve, event.config.memory.gpu_reserve

    def look(self, devices: Iterable[Device], processes: Mapping[int, Sequence[int]]) -> MemorySnapshot:
        """`processes`: the live processes of every instance."""
        now = self._clock.monotonic()
        others_than_cpu = [device for device in devices if device.kind != "cpu"]
        owners = {pid: instance for instance, pids in processes.items() for pid in pids}
        main = read_main_memory(self._roots)
        looks = self._observer.memory(others_than_cpu, owners)
        held = self._residents.look(processes)
        found = list(self._devices(looks, owners, main))
        self._look_around(now, found, owners, frozenset(processes))
        in_main = self._count_main(now)
        pools = [self._pool(device, main) for device in found]
        if main is not None:
            parts = [one for device in found for one in device.parts.values()]
            pools.insert(0, self._main(main, held.values(), parts))
        return MemorySnapshot(
            at=now,
            pools=tuple(pools),
            used={instance: _used(instance, held.get(instance), found, main) for instance in processes},
            foreign=self._named(found, [one for one in in_main if one.pid not in owners]),
            stall=read_stall(self._roots.proc),
        )

    # --- devices ----------------------------------------------------------------------------------------------

    def _devices(
        self, looks: Iterable[DeviceStatus], owners: Mapping[int, int], main: MainMemoryUse | None
    ) -> Iterator[_Device]:
        untold, shapes = {}, {}
        for look in looks:
            id, readings = look.device.id, look.readings
            shape = shape_of(look.device, readings, main.total if main is not None else None)
            if shape is None and readings.asleep and id in self._shapes:
                shape = replace(self._shapes[id], used=None)  # its size has not changed, and asking would wake it
            if shape is None:
                reasons = readings.reasons
                why = "it sleeps, and tells its size only when it is awake" if readings.asleep else None
                untold[id] = why or reasons.get("memory") or reasons.get("all") or "its driver tells no sizes of memory"
                continue
            shapes[id] = shape
            yield self._divided(look, shape, owners)
        self.untold, self._shapes = untold, shapes
        self._before = {id: size for id, size in self._before.items() if id in shapes}

    def _divided(self, look: DeviceStatus, shape: DeviceMemory, owners: Mapping[int, int]) -> _Device:
        """Who of ours holds what of it."""
        parts: dict[int, DeviceUse] = {}
        for holder in look.holders:
            instance = owners[holder.pid]
            one = parts.get(instance, DeviceUse()) + part(holder.memory, shape)
            parts[instance] = replace(one, device=min(one.device, shape.capacity))
        device = _Device(look, shape, parts)
        unsized = {owners[pid] for pid in look.unsized}
        rest = device.foreign
        if rest is None:
            return device
        if not unsized:
            self._before[look.device.id] = rest
            return device
        # The driver says that they use it, not how much: what has come since before them is theirs, in equal parts.
        each = max(0, rest - self._before.get(look.device.id, 0)) // len(unsized)
        return replace(
            device, parts=parts | {instance: parts.get(instance, DeviceUse()) + DeviceUse(each) for instance in unsized}
        )

    def _pool(self, device: _Device, main: MainMemoryUse | None) -> Pool:
        foreign = device.foreign
        if foreign is None:
            strangers = () if device.look.readings.asleep else self._strangers.get(device.look.device.id, ())
            foreign = sum(part(holder.memory, device.shape).device for holder in strangers)
        return pool_of(device.look.device, device.shape, foreign, reserve=self._gpu_reserve, main=main is not None)

    # --- main memory ------------------------------------------------------------------------------------------

    def _main(self, main: MainMemoryUse, held: Iterable[ResidentMemory], parts: Iterable[DeviceUse]) -> Pool:
        """Pages that drivers keep in main memory for a process are in no process's share of it."""
        firm = sum(one.firm for one in held) + sum(one.main + one.backing for one in parts)
        reserve = self._reserve if self._reserve is not None else usual_reserve(main.total)
        return Pool(RAM, "main memory", main.total, reserve, max(0, main.used - firm))

    # --- strangers --------------------------------------------------------------------------------------------

    def _look_around(
        self, now: float, found: Sequence[_Device], owners: Mapping[int, int], instances: frozenset[int]
    ) -> None:
        """Have the strangers, as new as they need to be."""
        foreign = {device.look.device.id: device.foreign or 0 for device in found}
        if self._looked_around is not None:
            at, known, before = self._looked_around
            moved = any(abs(size - before.get(id, 0)) > MOVED for id, size in foreign.items())
            if known == instances and now - at < (NOT_AGAIN if moved else LOOK_AROUND):
                return
        self._strangers = self._observer.strangers([device.look.device for device in found], owners)
        self._looked_around = now, instances, foreign

    def _count_main(self, now: float) -> list[ForeignUser]:
        if self._in_main is None or now - self._in_main[0] >= COUNT_MAIN:
            self._in_main = now, largest(self._roots)
        return self._in_main[1]

    def _named(self, found: Iterable[_Device], in_main: Iterable[ForeignUser]) -> tuple[ForeignUser, ...]:
        named = list(in_main)
        for device in found:
            id = device.look.device.id
            for holder in self._strangers.get(id, ()):
                size = part(holder.memory, device.shape).device
                if size:
                    named.append(ForeignUser(id, holder.pid, holder.process, min(size, device.shape.capacity)))
        return tuple(sorted(named, key=lambda one: (-one.size, one.pool, one.pid))[:MOST_NAMED])


def _used(
    instance: int, held: ResidentMemory | None, found: Iterable[_Device], main: MainMemoryUse | None
) -> dict[str, int]:
    """What an instance has in use, by pool; empty when none of its processes could be seen."""
    used: dict[str, int] = {}
    in_main = held.total if held is not None else 0
    for device in found:
        one = device.parts.get(instance, DeviceUse())
        if one.device:
            used[device.look.device.id] = one.device
        in_main += one.main
    if held is not None or in_main:
        used[RAM] = min(in_main, main.total) if main is not None else in_main
    return used
