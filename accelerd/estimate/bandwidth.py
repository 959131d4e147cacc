"""How fast a device reads memory, and what that means for a model: tokens a second, as a class that a person knows.

Makes tokens one after the other: each reads the active weights once, and the KV cache. Figures of devices are data
(bandwidth.toml); main memory is measured once: all cores copy for some tenths of a second, with 64 MiB each, where that
is to spare. An estimate, for a first answer: it must never decide anything. Blocks while it measures: call it in a
thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import time
import tomllib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

from accelerd.base.decoding import from_json
from accelerd.base.files import read_small
from accelerd.devices.model import Device

CLASSES: Final = ((30.0, "fast"), (8.0, "usable"), (2.0, "slow"), (0.0, "very slow"))  # from so many tokens/s on
MOST: Final = 300.0  # tokens/s; beyond, other things than memory decide
GIB: Final = 1 << 30

Kind = Literal["card", "shared", "processor"]


@dataclass(frozen=True)
class Rate:
    """How fast one pool is read. Bytes a second at its best; the shares are what of it llama.cpp reaches."""

    best: float
    dense: float
    experts: float
    source: str  # one clause

    def effective(self, *, experts: bool) -> float:
        return self.best * (self.experts if experts else self.dense)


@dataclass(frozen=True)
class Reads:
    """What one token reads. Bytes."""

    weights: int  # the active ones
    experts: bool = False  # it is a mixture of experts


@dataclass(frozen=True)
class Speed:
    tokens: float | None  # a second; None: not known
    label: str  # "fast", "usable", "slow", "very slow", "" when it is not known
    reason: str  # what it was reckoned from, or why it is not known; one clause

    def __str__(self) -> str:
        """ "fast: about 45 tokens/s"."""
        if self.tokens is None:
            return f"speed not known: {self.reason}"
        if self.tokens > MOST:
            return f"{self.label}: more than {MOST:.0f} tokens/s"
        return f"{self.label}: about {rounded(self.tokens)} tokens/s"


# --- devices --------------------------------------------------------------------------------------------------


def of_device(device: Device, memory: Callable[[], float | None]) -> Rate | None:
    """How fast the device reads its memory; None when nothing is known of it.

    `memory`: bytes a second of main memory, for what is part of the processor and not listed.
    """
    found = listed(device)
    if found is not None:
        where, entry = found
        kind: Kind = "shared" if device.apu or device.kind == "npu" else "card"
        return rate(entry["bandwidth"] * 1e9, kind, f"{entry['name']}: {entry['bandwidth']} GB/s ({where})")
    if device.kind == "gpu" and device.apu:
        best = memory()
        return rate(best, "shared", f"main memory: {best / 1e9:.0f} GB/s, measured") if best else None
    return None


def of_processor(memory: float, cores: int) -> Rate:
    """Of models that the processor runs. `memory`: bytes a second of main memory, as measured."""
    shares = table()["efficiency"]["processor"]
    best = min(memory, cores * shares["core"] * 1e9 / shares["dense"])
    number = f"{cores} cores" if cores > 1 else "one core"
    return rate(best, "processor", f"main memory: {memory / 1e9:.0f} GB/s, measured; {number}")


def listed(device: Device) -> tuple[str, dict[str, Any]] | None:
    """The device's entry with its source."""
    id, size = f"{device.vendor}:{device.device}", max((p.total for p in device.pools if p.name == "vram"), default=0)
    for group in table().values():
        for entry in group.get("devices", ()):
            same = (
                (entry.get("gfx") is not None and entry["gfx"] == device.gfx)
                or entry.get("id") == id
                or (device.kind == "npu" and entry.get("npu") == device.name)
            )
            if same and size >= entry.get("memory", 0) * GIB:
                return group["source"], entry
    return None


def rate(best: float, kind: Kind, source: str) -> Rate:
    shares = table()["efficiency"][kind]
    return Rate(best, shares["dense"], shares["experts"], source)


@cache
def table() -> dict[str, Any]:
    """bandwidth.toml; it does not change while the program runs."""
    return tomllib.loads((files("accelerd.estimate") / "bandwidth.toml").read_text())


# --- models ---------------------------------------------------------------------------------------------------

LOOKED_UP: Final = ("token_embd.weight", "per_layer_token_embd.weight")  # of these one row is read


def reads(tensors: Mapping[str, int], experts: int, used: int) -> Reads:
    """What a token reads of the tensors, their bytes by name. Of `experts` a token takes `used`."""
    total = 0
    for name, size in tensors.items():
        if name in LOOKED_UP:
            continue
        total += size * used // experts if is_routed(name) and experts > 0 else size
    if "output.weight" not in tensors:  # the matrix of the input serves for the output too
        total += tensors.get("token_embd.weight", 0)
    return Reads(total, experts > 0)


def is_routed(name: str) -> bool:
    """A tensor of many experts, of which a token takes some?"""
    return "_exps." in name


def speed(need: Reads, kv: int, shares: Mapping[str, float], rates: Mapping[str, Rate | None]) -> Speed:
    """What may be expected with a KV cache of `kv` bytes that is half full.

    `shares`: how much of the model lies in which pool, in sum 1; `rates`: how fast each is read, None: not known.
    """
    size, seconds, told = need.weights + kv // 2, 0.0, []
    for pool, share in shares.items():
        if share <= 0:
            continue
        found = rates.get(pool)
        if found is None:
            return Speed(None, "", "nobody has told accelerd how fast this device reads its memory")
        seconds += share * size / found.effective(experts=need.experts)
        told.append(found.source)
    if not seconds:
        return Speed(None, "", "nothing of it is read")
    tokens = 1 / seconds
    return Speed(tokens, label(tokens), f"{size / 1e9:.2f} GB a token; {'; '.join(told)}")


def label(tokens: float) -> str:
    return next(word for least, word in CLASSES if tokens >= least)


def rounded(tokens: float) -> str:
    """Two digits: more are not known."""
    return f"{tokens:.1f}" if tokens < 9.95 else f"{tokens:.0f}" if tokens < 99.5 else f"{round(tokens, -1):.0f}"


# --- main memory ----------------------------------------------------------------------------------------------

FILE: Final = "main-memory.json"
BLOCK: Final = 32 << 20  # bytes a core, copied to as many: no cache holds them all
MOST_CORES: Final = 8  # more do not make memory faster
SECONDS: Final = 0.2
ROUNDS: Final = 3  # the best counts: whatever else runs only slows it down


def copy_speed(cores: int) -> float:
    """Bytes read and written a second while so many cores copy."""
    size = 2 * BLOCK
    with ThreadPoolExecutor(cores) as pool, contextlib.ExitStack() as stack:
        areas = [stack.enter_context(mmap.mmap(-1, size)) for _ in range(cores)]
        for area in areas:
            area.write(b"\x01" * size)  # the first touch gives it its pages
        return max(sum(pool.map(copied, areas)) for _ in range(ROUNDS))


def copied(area: mmap.mmap) -> float:
    """Bytes a second of one core that copies one half of the area to the other for a while."""
    half = ctypes.c_char * BLOCK
    source, target = half.from_buffer(area), half.from_buffer(area, BLOCK)
    began, moved = time.perf_counter(), 0
    while not moved or time.perf_counter() - began < SECONDS / ROUNDS:
        ctypes.memmove(target, source, BLOCK)  # the other cores go on meanwhile: it holds no lock
        moved += 2 * BLOCK
    return moved / max(time.perf_counter() - began, 1e-9)


class CopySpeed:
    """The figure, measured when it is first asked for."""

    def __init__(
        self,
        cache: Path,
        processor: str,
        available: Callable[[], int | None],
        measure: Callable[[int], float] = copy_speed,
        cores: int | None = None,
    ) -> None:
        """`cache`: the program's own directory; `available`: free bytes of main memory, None: not known."""
        self._file = cache / FILE
        self._cores = min(cores or os.cpu_count() or 1, MOST_CORES)
        self._key = f"{processor}, {self._cores} cores"
        self._available = available
        self._measure = measure
        self._known: float | None = None

    def __call__(self) -> float | None:
        """Bytes a second; None where there is no memory to measure with."""
        if self._known is None:
            self._known = self._remembered()
        if self._known is None:
            free = self._available()
            if free is not None and free < 4 * self._cores * BLOCK:
                return None
            self._known = self._measure(self._cores)
            self._remember(self._known)
        return self._known

    def _remembered(self) -> float | None:
        try:
            found = from_json(read_small(self._file))
            value = found.get(self._key)
        except (OSError, ValueError, AttributeError):  # none yet, or somebody else's: it is measured anew
            return None
        return float(value) if isinstance(value, int | float) and value > 0 else None

    def _remember(self, value: float) -> None:
        with contextlib.suppress(OSError):  # it is only a cache: next time it is measured again
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._file.with_suffix(f".{os.getpid()}")
            fresh.write_text(json.dumps({self._key: round(value)}))
            fresh.replace(self._file)
