"""What is used of every pool: by each model, and by strangers. One look at a time, blocking, to be run in a thread.

Asks the devices and /proc, and remembers between looks what is dear to ask for: who the strangers are, and the exact
shares of processes. Decides nothing; who belongs to which instance it is told.

Main memory is read before what is ours of it: while a model loads, strangers may seem to have a little less than they
have, never more. Others' use of a GPU without memory of its own is in the GPU's figure and in that of main memory, as
`Ledger` expects it. A byte that a GPU keeps in main memory counts once: in the GPU's pool where the two share their
memory, else in main memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from accelerd.base.ports import Clock, Roots
from accelerd.config.model import ConfigApplied
from accelerd.devices.fdinfo import MemoryHolder
from accelerd.devices.model import Device, MemoryPool, runs_no_model
from accelerd.devices.observer import DeviceObserver, DeviceStatus
from accelerd.devices.readings import Readings
from accelerd.memory.model import RAM, ForeignUser, MemorySnapshot, Pool
from accelerd.memory.npu_rules import contexts
from accelerd.memory.psi import read_stall
from accelerd.memory.resident import MainMemoryUse, ResidentMemory, Residents, largest, read_main_memory, usual_reserve

GPU_RESERVE: Final = 256 << 20
MOST_NAMED: Final = 20
MOVED: Final = 32 << 20  # bytes: strangers whose figure moved by more are worth looking for …
LOOK_AROUND: Final = 5.0  # s until they are looked for in any case …
NOT_AGAIN: Final = 1.0  # … and from one time to the next at least: it means to read every process
COUNT_MAIN: Final = 10.0  # s between two looks at every process's share of main memory


# Drivers have names of their own for regions. Beginnings: amdgpu vram, gtt, cpu; xe vram0, gtt, system; i915 local0,
# system0; amdxdna and ivpu memory. The small rest (doorbells, gds, oa) is nobody's concern, nor what the firmware took
# away before the kernel (stolen).
LOCAL: Final = ("vram", "local")
MAPPED: Final = ("gtt", "tt", "system", "memory")  # main memory that the device sees
EVICTED: Final = "cpu"  # main memory that it does not see


class DeviceUse(Struct, frozen=True):
    """What somebody holds through a device, in bytes."""

    device: int = 0  # of the device's pool
    main: int = 0  # of main memory, counted there
    backing: int = 0  # of `device`, what lies in main memory

    def __add__(self, other: DeviceUse) -> DeviceUse:
        return DeviceUse(self.device + other.device, self.main + other.main, self.backing + other.backing)


class DeviceMemory(Struct, frozen=True):
    capacity: int
    own: int | None  # bytes that are not main memory; None: none of it is
    used: int | None  # of it, by anybody; None: not known


class _Device(Struct, frozen=True):
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
        others_than_cpu = [device for device in devices if device.kind != "cpu" and not runs_no_model(device)]
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
        own, capacity = device.shape.own, device.shape.capacity
        return Pool(
            id=device.look.device.id,
            label=device.look.device.name,
            capacity=capacity,
            reserve=self._gpu_reserve if device.look.device.kind != "npu" else 0,
            foreign=max(0, min(foreign, capacity)),
            backed_by=RAM if own is not None and main is not None else None,
            own=own or 0,
            contexts=contexts(device.look.device),
            columns=device.look.device.columns,
        )

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


# --- regions of a device's memory ---------------------------------------------------------------------------------


def part(memory: Mapping[str, int], shape: DeviceMemory) -> DeviceUse:
    """What a client with these regions holds."""
    local = sum(size for region, size in memory.items() if region.startswith(LOCAL))
    mapped = sum(size for region, size in memory.items() if region.startswith(MAPPED))
    evicted = memory.get(EVICTED, 0)
    if shape.own is None:
        return DeviceUse(local, mapped + evicted)
    # More than the device has for itself cannot lie there, whatever the driver calls it.
    return DeviceUse(local + mapped, evicted, mapped + max(0, local - shape.own))


def shape_of(device: Device, readings: Readings, main: int | None) -> DeviceMemory | None:
    """`main`: bytes of main memory, None where that is not known. None: the device tells nothing to plan with."""
    sizes = {pool.name: pool for pool in readings.pools}
    vram, gtt, unified = sizes.get("vram"), sizes.get("gtt"), sizes.get("unified")
    if device.kind == "npu":
        told = sizes.get("ram")
        return DeviceMemory(main, 0, told.used if told is not None else None) if main is not None else None
    if vram is None and gtt is None:
        # The machine's own memory: how much of it is the device's nobody tells.
        capacity = main if main is not None else unified.total if unified is not None else 0
        return DeviceMemory(capacity, 0, None) if unified is not None and capacity else None
    if not device.unified:
        return DeviceMemory(vram.total, None, vram.used) if vram is not None and vram.total else None
    own = vram.total if vram is not None else 0
    mapped = gtt.total if gtt is not None else 0
    # Older kernels let GTT be larger than what there is.
    return DeviceMemory(own + (min(mapped, main) if main is not None else mapped), own, _sum(vram, gtt))


def _sum(*pools: MemoryPool | None) -> int | None:
    used = [pool.used for pool in pools if pool is not None]
    known = [size for size in used if size is not None]
    return sum(known) if len(known) == len(used) else None
