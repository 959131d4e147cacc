"""A day of requests over thirty models, drawn from a seed: what a few people, their editors, agents and timers ask.

Two kinds: "day" has the structure of real use (habits, bursts, timers, agents that alternate, a game in the evening),
"random" has none (independent requests, popularity alone). Pure data; the same seed gives the same trace.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

GB = 1_000_000_000
HOUR = 3600.0
DAY = 24 * HOUR


@dataclass(frozen=True)
class Model:
    name: str
    size: int  # bytes
    parallel: int = 1
    idle_timeout: float | None = 7200.0  # s

    @property
    def load_time(self) -> float:
        """Seconds from the start of the process to ready: reading at 2.5 GB/s and what is fixed."""
        return self.size / (2.5 * GB) + 2.0


@dataclass(frozen=True)
class Step:
    """One request of a session: `service` seconds of work, then `think` seconds until the client's next."""

    model: str
    service: float
    think: float


@dataclass(frozen=True)
class Session:
    """One client: it sends its next request when the last was answered and it has thought."""

    start: float
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Trace:
    seed: int
    kind: str
    length: float  # s; sessions begin within it
    capacity: int  # bytes of the machine's one pool
    models: tuple[Model, ...]
    sessions: tuple[Session, ...]  # by start
    foreign: tuple[tuple[float, int], ...]  # (time, bytes that others hold from then on)

    @property
    def requests(self) -> int:
        return sum(len(session.steps) for session in self.sessions)


CAPACITY = 120 * GB
GAME = 40 * GB  # what the evening's game holds

_SIZES: dict[str, float] = {  # GB
    "assistant": 6, "embed": 2, "rerank": 2, "router": 2, "tts": 2, "whisper": 3, "complete": 4, "home": 4,
    "mail": 5, "ocr": 7, "summary": 8, "translate": 9, "sql": 10, "vision": 12, "image": 14, "math": 16,
    "chat-27b": 18, "act": 20, "chat-32b": 21, "coder": 22, "roleplay": 25, "writer": 27, "medical": 30, "legal": 34,
    "plan": 36, "reason-70b": 43, "coder-big": 48, "vision-big": 55, "moe-120b": 65, "moe-235b": 80,
}  # fmt: skip
_PARALLEL = {"assistant": 2, "embed": 4, "complete": 2, "rerank": 4}
_ALWAYS = ("assistant", "embed")  # people let these stay
_TAIL = (
    "chat-27b", "translate", "chat-32b", "vision", "writer", "ocr", "whisper", "math", "sql", "tts", "roleplay",
    "image", "legal", "medical", "router", "summary",
)  # fmt: skip
_BIG = ("moe-120b", "reason-70b", "moe-235b", "vision-big", "coder-big")
_AGENTS = (("plan", "act"), ("plan", "act"), ("coder-big", "act"), ("plan", "coder"))


def models() -> tuple[Model, ...]:
    return tuple(
        Model(name, int(size * GB), _PARALLEL.get(name, 1), None if name in _ALWAYS else 7200.0)
        for name, size in _SIZES.items()
    )


def make_trace(seed: int, days: float = 1.0, kind: str = "day") -> Trace:
    """Trace number `seed` of a kind, "day" or "random"."""
    draw = random.Random(f"{kind} {seed}")
    length = days * DAY
    made: list[Session] = []
    foreign = [(0.0, 0)]
    if kind == "random":
        made.extend(_structureless(draw, length))
    else:
        for day in range(int(-(-length // DAY))):
            for source in _SOURCES:
                made.extend(Session(day * DAY + s.start, s.steps) for s in source(draw))
            evening = day * DAY + 19.5 * HOUR
            foreign += [(evening, GAME), (evening + 2 * HOUR, 0)]
    made = sorted((s for s in made if s.start < length), key=lambda s: s.start)
    return Trace(seed, kind, length, CAPACITY, models(), tuple(made), tuple(f for f in foreign if f[0] < length))


# --- where requests come from, each for one day ---------------------------------------------------------------------


def _poisson(draw: random.Random, per_hour: float, begin: float, end: float) -> Iterator[float]:
    """Moments of independent events between two hours of the day."""
    at = begin * HOUR
    while (at := at + draw.expovariate(per_hour / HOUR)) < end * HOUR:
        yield at


def _turns(draw: random.Random, model: str, count: int, service: float, think: float) -> tuple[Step, ...]:
    return tuple(
        Step(model, service * draw.uniform(0.5, 2.0), think * draw.lognormvariate(0.0, 0.7)) for _ in range(count)
    )


def _assistant(draw: random.Random) -> Iterator[Session]:
    for at in _poisson(draw, 8, 7, 23.5):
        yield Session(at, _turns(draw, "assistant", draw.randint(1, 4), 4, 30))


def _embeddings(draw: random.Random) -> Iterator[Session]:
    at = draw.uniform(0, 300)
    while at < DAY:
        steps = _turns(draw, "embed", draw.randint(1, 3), 0.3, 0.2)
        if draw.random() < 0.2:
            steps += _turns(draw, "rerank", 1, 0.5, 0.2)
        yield Session(at, steps)
        at += 300 + draw.uniform(-5, 5)


def _mail(draw: random.Random) -> Iterator[Session]:
    for quarter in range(8 * 4, 20 * 4):
        steps = _turns(draw, "mail", draw.randint(1, 4), 3, 1)
        if draw.random() < 0.15:
            steps += _turns(draw, "summary", draw.randint(1, 3), 8, 2)
        yield Session(quarter * 900 + draw.uniform(0, 20), steps)


def _coding(draw: random.Random) -> Iterator[Session]:
    for at in _poisson(draw, 0.7, 9, 18.5):
        minutes = draw.uniform(15, 55)
        yield Session(at, _turns(draw, "coder", int(minutes * 60 / 45), 12, 30))
        yield Session(at + 20, _turns(draw, "complete", int(minutes * 60 / 15), 0.6, 12))


def _agents(draw: random.Random) -> Iterator[Session]:
    for at in _poisson(draw, 0.5, 8, 23):
        pair = draw.choice(_AGENTS)
        steps: list[Step] = []
        for _ in range(draw.randint(8, 40)):
            for model in pair:
                steps += _turns(draw, model, 1, 12, 2)
        yield Session(at, tuple(steps))


def _big(draw: random.Random) -> Iterator[Session]:
    weights = [1 / (rank + 1) for rank in range(len(_BIG))]
    for at in _poisson(draw, 0.8, 8, 23):
        name = draw.choices(_BIG, weights)[0]
        yield Session(at, _turns(draw, name, draw.randint(1, 6), 40, 60))


def _others(draw: random.Random) -> Iterator[Session]:
    weights = [1 / (rank + 1) ** 0.8 for rank in range(len(_TAIL))]
    for at in _poisson(draw, 6, 7, 24):
        name = draw.choices(_TAIL, weights)[0]
        yield Session(at, _turns(draw, name, draw.randint(1, 5), 10, 40))


def _at_home(draw: random.Random) -> Iterator[Session]:
    for at in _poisson(draw, 2.5, 6, 23.5):
        yield Session(at, _turns(draw, "home", draw.randint(1, 2), 1.5, 4))


def _by_night(draw: random.Random) -> Iterator[Session]:
    steps: tuple[Step, ...] = ()
    for _ in range(draw.randint(20, 60)):
        steps += _turns(draw, "ocr", 1, 6, 1) + _turns(draw, "summary", 1, 15, 1)
    yield Session(3 * HOUR + draw.uniform(0, 60), steps)


_SOURCES: tuple[Callable[[random.Random], Iterator[Session]], ...] = (
    _assistant, _embeddings, _mail, _coding, _agents, _big, _others, _at_home, _by_night,
)  # fmt: skip


def _structureless(draw: random.Random, length: float) -> Iterator[Session]:
    """Independent single requests, 30 an hour; any model as likely as any other, which nobody can learn."""
    names = list(_SIZES)
    for at in _poisson(draw, 30, 0, length / HOUR):
        yield Session(at, _turns(draw, draw.choice(names), 1, 6, 0))
