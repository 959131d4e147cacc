"""Memory as the rest of the program speaks of it: pools, what a model needs of them, what was seen in use. Pure data.

Sizes are bytes. A pool's id is RAM or the id of a device (its PCI slot); amounts are kept by pool id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

RAM: Final = "ram"  # the id of main memory
PROMPT_CACHE: Final = "prompt cache"  # a part of a need
EVERYWHERE: Final = ("0.0.0.0", "::")  # addresses of a published port that stand for all of this machine


class Pool(Struct, frozen=True):
    """Memory that models are placed in.

    A GPU that is part of the processor has `own` bytes for itself; what goes beyond lies in the pool `backed_by` and
    counts there too. An NPU without memory has own = 0.
    """

    id: str
    label: str  # for people: "main memory", "AMD Radeon 8060S Graphics"
    capacity: int
    reserve: int = 0  # nobody is given these
    foreign: int = 0  # in use by others than our models
    backed_by: str | None = None
    own: int = 0  # of a pool with `backed_by`: bytes that are not the other's
    contexts: int | None = None  # of an NPU: programs' places on it, all at once; None: not known, and no limit
    columns: int | None = None  # of an NPU: what it is made of

    @property
    def room(self) -> int:
        """What models could have if nobody else used it."""
        return max(0, self.capacity - self.reserve)


class Claim(Struct, frozen=True):
    """A place on an NPU, which is not counted in bytes: hardware contexts, and with whom it is shared (npu_rules)."""

    device: str  # its id
    family: str  # who computes there: "flm", "whispercpp", "ryzenai-llm"
    kind: str  # "llm", "asr", "embed"
    contexts: int = 1
    host: str = ""  # the one server that holds several models, for people: "Lemonade (13305)"; "": its own process


class MemoryRequirement(Struct, frozen=True):
    """What one way of running a model takes, by pool."""

    amounts: Mapping[str, int]
    source: str  # one clause: "estimated from the file's header", "measured in an earlier run", "declared: …"
    devices: tuple[str, ...] = ()  # ids of what it is placed on, in order; (): the processor, or not decided here
    shares: Mapping[str, Mapping[str, int]] = field(
        default_factory=dict
    )  # of each pool's amount what is for "weights", "kv cache", "compute", "projector", …; {}: not known
    claims: tuple[Claim, ...] = ()
    declared: bool = False  # written in the configuration: measurements only raise it
    raised: bool = False  # the model ran out of memory with less than this
    cache: int = 0  # of main memory, what the engine may use for its prompt cache
    context: int | None = None  # tokens of one request, where the setting leaves that open

    @property
    def total(self) -> int:
        return sum(self.amounts.values())

    @property
    def parts(self) -> dict[str, int]:
        """The shares of all pools together."""
        found: dict[str, int] = {}
        for share in self.shares.values():
            for name, size in share.items():
                found[name] = found.get(name, 0) + size
        return found

    def with_cache(self, size: int) -> MemoryRequirement:
        """The same need with a prompt cache of `size` bytes instead of the one that it has."""
        if size == self.cache:
            return self
        amounts = {**self.amounts, RAM: self.amounts.get(RAM, 0) - self.cache + size}
        shares = self.shares
        if shares:
            main = {name: part for name, part in shares.get(RAM, {}).items() if name != PROMPT_CACHE}
            shares = {**shares, RAM: {**main, PROMPT_CACHE: size} if size else main}
        return replace(self, amounts=amounts, shares=shares, cache=size)

    def scaled(self, total: int, source: str, *, raised: bool = False) -> MemoryRequirement:
        """The same need with `total` bytes, every pool in proportion."""
        old = self.total
        if old <= 0:
            pool = next(iter(self.amounts), RAM)
            return replace(self, amounts={pool: total}, source=source, shares={}, raised=raised)
        amounts = {pool: size * total // old for pool, size in self.amounts.items()}
        first = max(amounts, key=lambda pool: amounts[pool])
        amounts[first] += total - sum(amounts.values())  # what rounding took
        return replace(self, amounts=amounts, source=source, shares={}, raised=raised)


def in_ram(size: int, source: str, *, declared: bool = False) -> MemoryRequirement:
    return MemoryRequirement({RAM: size}, source, declared=declared)


class Shared(Struct, frozen=True):
    """A place in a server that holds several models."""

    server: str  # for people: "the Lemonade Server"
    model: str  # its name there: the server holds it once, with one set of options
    # Does a load that fails there end the other models, whatever they are doing?
    cuts: bool = False


class Forecast(Struct, frozen=True):
    """What is known before a model is loaded: the ways to place it, the best first. Never empty."""

    options: tuple[MemoryRequirement, ...]
    key: str = (
        ""  # names the file, the settings and the engine's build: what was measured belongs to it; "": to nothing
    )
    load_seconds: float | None = None  # what the last load took
    missing: bool = False  # its files are not on this machine: they are downloaded before it is loaded
    provisional: bool = False  # its program was not asked yet: the estimate may be too high, and a better one will come
    spare_cache: int = 0  # the most that its prompt cache takes of what a start leaves; never a reason not to start
    shared: Shared | None = None  # where it is one of several models of a server
    ports: tuple[tuple[str, int], ...] = ()  # of this machine that its container publishes: address, number
    asleep: Mapping[str, int] | None = None  # what its weights take by pool while it sleeps; None: it cannot sleep

    def shared_port(self, other: Forecast) -> int | None:
        """A port that two containers publish at the same address: they cannot run at once."""
        for address, port in self.ports:
            for theirs, number in other.ports:
                if port == number and (address == theirs or {address, theirs} & set(EVERYWHERE)):
                    return port
        return None


class ForeignUser(Struct, frozen=True):
    """Somebody else's process and what it holds of a pool."""

    pool: str
    pid: int
    process: str
    size: int


class Stall(Struct, frozen=True):
    """Pressure stall information of memory, /proc/pressure/memory: % of the last 10 s."""

    some: float = 0.0
    full: float = 0.0


class MemorySnapshot(Struct, frozen=True):
    at: float  # monotonic seconds
    pools: tuple[Pool, ...]
    used: Mapping[int, Mapping[str, int]]  # bytes in use, by pool, by instance
    foreign: tuple[
        ForeignUser, ...
    ] = ()  # the largest first; what nobody can be named for is in the pools' figure only
    stall: Stall | None = None  # None: this kernel does not tell
