"""Which ways of running a model are measured, one after the other, and which is the best of them. Pure.

One knob after the other is turned, from the best that was found so far: all combinations would take all day. What is
compared is the time of a usual request; a change must win by more than the measurements differ among themselves.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from accelerd.config.model import ModelSpec

USUAL_PROMPT: Final = 2048  # tokens
USUAL_ANSWER: Final = 256
LEAST_GAIN: Final = 0.02  # of the time: less is not worth a setting
MOST_NOISE: Final = 0.15  # beyond, numbers say nothing, and no one is asked to win by more
DEFAULTS: Final[Mapping[str, Any]] = {  # llama-server's own
    "batch": 2048, "ubatch": 512, "flash_attention": "auto", "cache_type_k": "f16", "cache_type_v": "f16",
    "threads": None,
}  # fmt: skip
UBATCHES: Final = (256, 512, 1024, 2048)
BATCHES: Final = (512, 2048, 4096)
UNQUANTISED: Final = ("f32", "f16", "bf16")


class RateSeries(Struct, frozen=True):
    """Tokens a second, measured several times."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half of the range."""
        return (max(self.values) - min(self.values)) / 2

    @property
    def noise(self) -> float:
        """The spread as a part of the median."""
        return self.spread / self.median


class TuningCandidate(Struct, frozen=True):
    """One way of running the model: `settings` beside those that it has now, by field of ModelSpec."""

    label: str
    settings: Mapping[str, Any]


class TuningRow(Struct, frozen=True):
    """What came of a candidate."""

    candidate: TuningCandidate
    prompt: RateSeries | None = None
    generation: RateSeries | None = None
    failed: str = ""  # why there are no numbers
    disturbed: bool = False  # other models worked meanwhile

    @property
    def seconds(self) -> float:
        """A usual request takes this long; inf when it failed."""
        if self.prompt is None or self.generation is None:
            return math.inf
        return USUAL_PROMPT / self.prompt.median + USUAL_ANSWER / self.generation.median

    @property
    def noise(self) -> float:
        if self.prompt is None or self.generation is None:
            return 0.0
        return min(MOST_NOISE, max(self.prompt.noise, self.generation.noise))


def better(row: TuningRow, than: TuningRow) -> bool:
    """Is it faster, by more than chance?"""
    return row.seconds < than.seconds * (1 - max(LEAST_GAIN, row.noise, than.noise))


class TuningSearch:
    """Ask `next` for a candidate, tell `done` what came of it, until there is none left. The first is how it is now."""

    def __init__(self, now: ModelSpec, gpu: bool, physical: int, logical: int, quick: bool = False) -> None:
        """`now`: with all that rules add; `physical`, `logical`: cores."""
        self.now = now
        self.gpu = gpu
        self.physical = physical
        self.logical = logical
        self.quick = quick
        self.rows: list[TuningRow] = []
        self.best: TuningRow | None = None
        self._queue: deque[TuningCandidate] = deque([TuningCandidate("as it is now", {})])
        self._tried = {self._key({})}
        self._stages = self._knobs()

    def next(self) -> TuningCandidate | None:
        while not self._queue:
            stage = next(self._stages, None)
            if stage is None:
                return None
            for settings in stage:
                key = self._key(settings)
                if key not in self._tried:
                    self._tried.add(key)
                    self._queue.append(TuningCandidate(self._label(settings), settings))
        return self._queue.popleft()

    def done(self, row: TuningRow) -> None:
        self.rows.append(row)
        if self.best is None or better(row, self.best):
            self.best = row

    def changes(self) -> dict[str, Any]:
        """What the best has that the model has not now."""
        settings = self.best.candidate.settings if self.best is not None else {}
        return {key: value for key, value in settings.items() if value != self._value({}, key)}

    # --- knobs ------------------------------------------------------------------------------------------------

    def _knobs(self) -> Iterator[list[dict[str, Any]]]:
        """Stage after stage, each made when the one before is done."""
        if not self.gpu:
            counts = [self.physical, max(1, self.physical // 2), self.logical]
            yield [self._with(threads=count) for count in counts]
        sizes = UBATCHES[:3] if self.quick or not self.gpu else UBATCHES
        yield [self._with(ubatch=size, batch=max(size, self._at("batch"))) for size in sizes]
        if self.gpu and not self.quick:
            yield [self._with(batch=size) for size in BATCHES if size >= self._at("ubatch")]
        yield [self._flash(mode) for mode in ("on", "off") if mode != self._at("flash_attention")]
        if self.gpu and not self.quick and self._at("flash_attention") != "off":
            yield [self._with(flash_attention="on", cache_type_k=kind, cache_type_v=kind) for kind in ("f16", "q8_0")]

    def _flash(self, mode: str) -> dict[str, Any]:
        settings = self._with(flash_attention=mode)
        if mode == "off" and self._at("cache_type_v") not in UNQUANTISED:
            settings |= {"cache_type_k": "f16", "cache_type_v": "f16"}
        return settings

    def _with(self, **more: Any) -> dict[str, Any]:
        """The best so far with these."""
        base = self.best.candidate.settings if self.best is not None else {}
        return {**base, **more}

    def _at(self, key: str) -> Any:
        """The value of the best so far."""
        return self._value(self._with(), key)

    def _value(self, settings: Mapping[str, Any], key: str) -> Any:
        value = settings.get(key)
        if value is None:
            value = getattr(self.now, key)
        if value is None:
            value = self.physical if key == "threads" else DEFAULTS[key]
        return value

    def _key(self, settings: Mapping[str, Any]) -> tuple[Any, ...]:
        """Two candidates with the same key are run in the same way."""
        return tuple(self._value(settings, key) for key in DEFAULTS)

    def _label(self, settings: Mapping[str, Any]) -> str:
        changed = {key: value for key, value in settings.items() if value != self._value({}, key)}
        words = []
        for key, value in written(changed).items():
            words.append(f"{key} {value if not isinstance(value, dict) else '/'.join(value.values())}")
        return ", ".join(words) or "as it is now"


def written(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they stand in accelerd.toml."""
    found = {key: value for key, value in settings.items() if not key.startswith("cache_type_")}
    halves = {key[-1]: value for key, value in settings.items() if key.startswith("cache_type_")}
    if halves:
        same = len(halves) == 2 and len(set(halves.values())) == 1
        found["kv_cache_type"] = next(iter(halves.values())) if same else halves
    return found
