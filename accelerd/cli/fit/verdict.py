"""Compares what a model needs with what a machine has, for `accelctl fit`. Pure.

Free memory comes from the ledger, the need from the estimate (or from the daemon, which has measured), the speed from
the bandwidth. Decides nothing that the scheduler decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from msgspec.structs import replace

from accelerd.config import Config
from accelerd.devices.model import Device
from accelerd.devices.model import room as room_of
from accelerd.engines.llama_server.forecast import ForecastInputs, cache_of, offers, ways
from accelerd.estimate import bandwidth, placing, smaller
from accelerd.estimate.bandwidth import Rate, Speed
from accelerd.estimate.estimate import MemoryShare
from accelerd.estimate.tensor_places import HOST, elsewhere
from accelerd.memory.ledger import Holding, Ledger
from accelerd.memory.model import RAM, Claim, MemoryRequirement
from accelerd.memory.npu_rules import clash, lacking
from accelerd.memory.report import ledger_of

KINDS: Final = ("f16", "q8_0", "q4_0")  # types of the cache that are compared


@dataclass(frozen=True)
class FreeMemory:
    """What there is, by pool: free, and of GPUs that share main memory what they have for themselves."""

    books: Ledger
    free: Mapping[str, int]
    backing: smaller.Backing
    total: int | None = None  # of all pools together; None: no limit

    def takes(self, need: MemoryRequirement) -> bool:
        within = self.total is None or need.total <= self.total
        return within and smaller.fits(need, self.free, self.backing) and self.npu_conflict(need) is None

    def npu_conflict(self, need: MemoryRequirement) -> str | None:
        """Why there is no place for it on an NPU, one clause; None: there is, or it wants none."""
        if any(claim.device not in self.books.pools for claim in need.claims):
            return "this machine has no working NPU; see: accelctl doctor"
        others = {held.model: held_by(held) for held in self.books.holdings}
        for name, other in others.items():
            if why := clash(need, other):
                return f"{name} is loaded, and {why}"
        for pool, wanted, taken in lacking(need, others.values(), self.books.pools.values()):
            return f"it needs {wanted} of {pool.contexts} hardware contexts of {pool.label}, and {taken} are in use"
        return None


def held_by(holding: Holding) -> MemoryRequirement:
    return MemoryRequirement(holding.amounts, "", claims=holding.claims)


@dataclass(frozen=True)
class MachineState:
    ledger: Ledger
    facts: Mapping[str, Mapping[str, Any]]  # of models that hold memory: leases, idle, pin, priority
    devices: tuple[Device, ...] = ()
    rate: Callable[[str], Rate | None] = lambda pool: None  # how fast a pool is read
    limit: int | None = None  # bytes for all models together; None: there is none
    untold: str = ""  # why some pool is missing

    def room(self, gone: Iterable[str]) -> FreeMemory:
        """What is free with these models unloaded."""
        left = set(gone)
        books = Ledger(self.ledger.pools.values(), [one for one in self.ledger.holdings if one.model not in left])
        balances = books.balances()
        free = {one.pool.id: one.free for one in balances}
        rest = None
        if self.limit is not None:
            rest = self.limit - sum(sum(one.amounts.values()) for one in books.holdings)
            free = {id: min(size, rest) for id, size in free.items()}
        backing = {
            one.pool.id: (one.pool.backed_by, max(0, one.pool.own - one.foreign - one.held))
            for one in balances
            if one.pool.backed_by is not None
        }
        return FreeMemory(books, free, backing, rest)


def requirement_of(option: Mapping[str, Any]) -> MemoryRequirement:
    """One way to place a model, as the daemon tells it."""
    claims = tuple(Claim(**claim) for claim in option.get("claims") or ())
    shares, context = option.get("shares") or {}, option.get("context")
    devices = tuple(option["devices"])
    return MemoryRequirement(option["amounts"], option["source"], devices, shares, claims, context=context)


def machine_of(report: Mapping[str, Any], config: Config, **more: Any) -> MachineState:
    """The machine that an answer of `accelctl memory` describes."""
    facts = {held["model"]: held for pool in report["pools"] for held in pool["holdings"]}
    untold = str(report.get("degraded") or "")
    return MachineState(ledger_of(report), facts, limit=config.scheduler.memory, untold=untold, **more)


class ModelFit:
    """One model, which can be placed in several ways, on one machine."""

    def __init__(self, name: str, options: Sequence[MemoryRequirement], machine: MachineState) -> None:
        """`options`: the best first."""
        self.options = options
        self.machine = machine
        # its own name where it is loaded already: its memory counts as free
        self.itself = frozenset({name} if any(one.model == name for one in machine.ledger.holdings) else ())

    @cached_property
    def movable(self) -> tuple[Holding, ...]:
        """Models that may be unloaded for another, in the order of eviction."""
        found = [
            one for one in self.machine.ledger.holdings
            if one.phase in ("resident", "leaving") and one.model not in self.itself and not self._of(one).get("pin")
        ]  # fmt: skip
        return tuple(sorted(found, key=self._rank))

    def _of(self, holding: Holding) -> Mapping[str, Any]:
        return self.machine.facts.get(holding.model, {})

    def _rank(self, holding: Holding) -> tuple[bool, bool, int, float]:
        told = self._of(holding)
        idle = told.get("idle")
        return holding.phase != "leaving", bool(told.get("leases")), int(told.get("priority") or 0), -float(idle or 0)

    @cached_property
    def now(self) -> FreeMemory:
        return self.machine.room(self.itself)

    @cached_property
    def alone(self) -> FreeMemory:
        """What is free with every other model unloaded that may be."""
        return self.machine.room([*self.itself, *(one.model for one in self.movable)])

    @cached_property
    def need(self) -> MemoryRequirement:
        """The placement that is taken: the best that fits now, else the best that fits at all, else the best."""
        for room in (self.now, self.alone):
            for need in self.options:
                if room.takes(need):
                    return need
        return self.options[0]

    @property
    def fits_now(self) -> bool:
        return self.now.takes(self.need)

    @property
    def fits(self) -> bool:
        return self.alone.takes(self.need)

    @cached_property
    def unknown(self) -> str:
        """Why nothing can be said; empty: it can."""
        missing = [pool for pool, size in self.need.amounts.items() if size and pool not in self.machine.ledger.pools]
        if not missing:
            return ""
        return self.machine.untold or f"nothing is known about the memory of {', '.join(missing)}"

    @cached_property
    def leaving(self) -> tuple[str, ...]:
        """Models to unload for it, as far as can be said from outside the daemon."""
        if self.fits_now or not self.fits:
            return ()
        gone: list[str] = []
        for one in self.movable:
            gone.append(one.model)
            if self._enough(gone):
                break
        for name in tuple(gone):
            rest = [other for other in gone if other != name]
            gone = rest if self._enough(rest) else gone
        return tuple(gone)

    def _enough(self, gone: Iterable[str]) -> bool:
        return self.machine.room([*self.itself, *gone]).takes(self.need)

    @cached_property
    def chosen(self) -> FreeMemory:
        """What is free for it: now, or with those unloaded that must be, or at most."""
        if self.fits_now:
            return self.now
        return self.machine.room([*self.itself, *self.leaving]) if self.fits else self.alone

    @cached_property
    def spare(self) -> dict[str, int]:
        """What is left of every pool that it uses; negative: so much is missing."""
        room, found = self.chosen, {}
        for pool, size in self.need.amounts.items():
            if not size:
                continue
            found[pool] = room.free.get(pool, 0) - size
            if pool in room.backing:
                other, own = room.backing[pool]
                beyond = max(0, size - own) + (self.need.amounts.get(other, 0))
                found[pool] = min(found[pool], room.free.get(other, 0) - beyond)
        return found


class GgufFit(ModelFit):
    """A model that llama-server runs: from its header which contexts would fit, and how fast it would be."""

    def __init__(
        self,
        known: ForecastInputs,
        machine: MachineState,
        measured: Sequence[MemoryRequirement] = (),
        *,
        configured: bool = True,
    ) -> None:
        """`known`: the model with its settings; `measured`: what the daemon would reserve, where it has been asked.

        `configured`: it is the model that the daemon knows by its name.
        """
        self.known = known
        self.measured = tuple(measured)
        self.estimate = known.read.estimate(known.settings)
        placed = placing.options(self.estimate, known.gpus, gpu_layers=known.gpu_layers, wanted_gpus=known.spec.gpus)
        options = self.measured or [need.with_cache(cache_of(known)) for need in placed]
        super().__init__(known.spec.name if configured else "", options, machine)

    @property
    def trained(self) -> int:
        """Tokens of the context that it was trained for; 0: not said."""
        return self.estimate.facts.trained

    @property
    def kind(self) -> str:
        return self.known.settings.type_k

    def largest(self, kind: str | None, room: FreeMemory) -> int:
        """The largest context of one request that fits; 0: none does."""
        return smaller.largest_context(ways(self.known), room.free, self.trained or smaller.LARGEST, kind, room.backing)

    @cached_property
    def contexts(self) -> list[dict[str, Any]]:
        """For each type of the KV cache the largest context, now and with all others unloaded."""
        if self.estimate.facts.encoder or not self.estimate.cache:
            return []
        found = []
        for kind in dict.fromkeys((self.kind, *KINDS)):
            now = self.largest(kind, self.now)
            alone = now if now and now == self.trained else self.largest(kind, self.alone)
            found.append({"kv": kind, "now": now, "alone": max(now, alone)})
        return found

    @cached_property
    def offers(self) -> str:
        """Smaller settings that would fit: one clause, or nothing."""
        if self.fits or self.unknown:
            return ""
        found = offers(self.known, self.alone.free, self.alone.backing)
        layers = self._layers()
        if layers is not None:
            more = f"gpu_layers = {layers}" + (
                ", the rest of it in main memory" if layers else ", in main memory alone"
            )
            found = f"{found}, or with {more}" if found else f"it would fit with {more}"
        return found

    def _layers(self) -> int | None:
        """How many layers would fit on the best GPU, the others in main memory; None: not even none of them."""
        if not self.known.gpus or self.known.gpu_layers == 0:
            return None

        def enough(layers: int) -> bool:
            known = replace(self.known, gpu_layers=layers)
            context = self.known.spec.tokens or self.trained
            return any(self.alone.takes(need) for need in ways(known)(context, None))

        low, high = -1, len(self.estimate.layers) + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if enough(middle) else (low, middle)
        return low if low >= 0 else None

    @cached_property
    def shares(self) -> dict[str, MemoryShare]:
        """What lies where, by pool."""
        devices = {device.id: device for device in self.machine.devices}
        chosen = [devices[id] for id in self.need.devices if id in devices]
        if not chosen:
            return {RAM: self.estimate.placed(())[0]}
        counts = placing.divided(self._on_gpus(), [room_of(device) for device in chosen])
        placed = self.estimate.placed(counts)
        return dict(zip((RAM, *(device.id for device in chosen)), placed, strict=True))

    def _on_gpus(self) -> int:
        """Layers on GPUs, with what comes behind the last."""
        wanted, every = self.known.gpu_layers, len(self.estimate.layers) + 1
        return min(wanted, every) if isinstance(wanted, int) and wanted >= 0 else every

    @cached_property
    def speed(self) -> Speed:
        facts = self.estimate.facts
        if facts.encoder or self.known.settings.embeddings or self.known.settings.rerank:
            return Speed(None, "", "it makes no text")
        drafting = {f"blk.{layer.index}." for layer in facts.drafting}
        tensors = {
            name: tensor.size
            for name, tensor in self.known.read.model.tensors.items()
            if not any(name.startswith(prefix) for prefix in drafting)
        }
        need = bandwidth.reads(tensors, facts.experts, facts.used)
        shares = self._read_from(tensors, need)
        rates = {pool: self.machine.rate(pool) for pool, share in shares.items() if share > 0}
        return bandwidth.speed(need, self.estimate.cache // max(1, self.known.settings.slots), shares, rates)

    def _read_from(self, tensors: Mapping[str, int], need: bandwidth.Reads) -> dict[str, float]:
        """From which pool how much of it is read, in sum 1."""
        places = [id for id in self.shares if id != RAM]
        if not places:
            return {RAM: 1.0}
        on_gpus = self._on_gpus() / (len(self.estimate.layers) + 1)
        facts, where = self.estimate.facts, elsewhere(self.known.read.model, self.known.settings.overrides)
        kept = {name: size for name, size in tensors.items() if where.get(name) == HOST}
        routed = sum(size for name, size in kept.items() if bandwidth.is_routed(name)) if facts.experts else 0
        moved = sum(kept.values()) - routed + (routed * facts.used // facts.experts if facts.experts else 0)
        on_gpus *= 1 - moved / max(1, need.weights)
        weights = {id: self.shares[id].weights for id in places}
        total = sum(weights.values()) or 1
        return {RAM: 1 - on_gpus, **{id: on_gpus * size / total for id, size in weights.items()}}
