"""What is measured, and in which order: the rows, the rounds over them, and the costs at rest.

Contenders take turns inside every row of every round, so that a noisy minute hits all of them. A sample is one
contender in one row of one round; nothing is thrown away.
"""

from __future__ import annotations

import json
import resource
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import host, usage
from .contenders import KEY, Accelerd, Contender, Direct, LiteLlm, LlamaSwap, Nginx, Setup
from .native import BenchError

SETTLE = {"idle": 1.0, "loaded": 6.0}  # seconds for what still runs after the start or after the last request
STREAM_CHUNKS = 40
STREAM_GAP_US = 5000
PROMPT = (
    "Say hello to the person who reads this, in a few friendly words, and do not forget to mention the weather. " * 2
)


@dataclass(frozen=True)
class Row:
    """One kind of load. `chunks` > 0: a stream of that many stamped events per request. `segments`: 2 sends head and
    body one after the other, as httpx does and so openai-python.
    """

    key: str
    title: str
    path: str
    body: dict[str, object]
    connections: int
    chunks: int = 0
    segments: int = 1


def _chat(model: str, **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 64, **more}


CHAT = "/v1/chat/completions"
ROWS = (
    Row("chat1", "chat, 1 connection", CHAT, _chat("fake"), 1),
    Row("chat1x2", "chat, 1 connection, head and body in two segments", CHAT, _chat("fake"), 1, segments=2),
    Row("embeddings16", "embeddings, 16 connections", "/v1/embeddings", {"model": "fake-embed", "input": PROMPT}, 16),
    Row(
        "embeddings16x2",
        "embeddings, 16 connections, head and body in two segments",
        "/v1/embeddings",
        {"model": "fake-embed", "input": PROMPT},
        16,
        segments=2,
    ),
    Row(
        "stream16",
        f"chat, 16 streams, {STREAM_GAP_US // 1000} ms between chunks",
        CHAT,
        _chat("fake-parallel", stream=True, fake_chunks=STREAM_CHUNKS, fake_gap_us=STREAM_GAP_US),
        16,
        STREAM_CHUNKS,
    ),
    # A whole answer of a model with several slots: accelerd asks for a stream and assembles it, the others relay.
    Row("assembled1", "chat, 1 connection, assembled by accelerd from 16 chunks", CHAT, _chat("fake-parallel"), 1),
    Row("assembled16", "chat, 16 connections, assembled by accelerd from 16 chunks", CHAT, _chat("fake-parallel"), 16),
)


@dataclass(frozen=True)
class Plan:
    """How long everything takes. Seconds; `seconds` is per sample."""

    rounds: int
    seconds: float
    idle: float


QUICK = Plan(rounds=3, seconds=0.25, idle=1.5)
FULL = Plan(rounds=5, seconds=2.0, idle=8.0)


@dataclass
class Results:
    """Everything measured: samples[row][contender] is one dict per round; rest[contender] the costs at rest."""

    samples: dict[str, dict[str, list[dict[str, float]]]] = field(default_factory=dict)
    rest: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    foreign: float = 0.0  # share of the pinned cores that strangers used while samples were taken
    contenders: list[str] = field(default_factory=list)


class Bench:
    """One run. `say` hears of progress."""

    def __init__(self, setup: Setup, plan: Plan, names: tuple[str, ...], say: Callable[[str], None]) -> None:
        self._setup, self._plan, self._say = setup, plan, say
        direct = Direct(setup)
        made: dict[str, Callable[[], Contender]] = {
            "direct": lambda: direct,
            "nginx": lambda: Nginx(setup, direct),
            "accelerd": lambda: Accelerd(setup),
            "llama-swap": lambda: LlamaSwap(setup),
            "litellm": lambda: LiteLlm(setup, direct),
        }
        self._contenders = [made[name]() for name in names]
        self._proxies = [contender for contender in self._contenders if contender is not direct]
        self._results = Results(
            samples={row.key: {name: [] for name in names} for row in ROWS},
            rest={contender.name: {} for contender in self._proxies},
            contenders=list(names),
        )
        self._busy = self._known = self._capacity = 0.0

    def run(self) -> Results:
        """All of it; raises BenchError when a contender cannot be measured at all."""
        try:
            self._starts()
            self._watch("idle")
            for contender in self._contenders:
                self._warm(contender)
            for number in range(self._plan.rounds):
                self._say(f"round {number + 1} of {self._plan.rounds}")
                for row in ROWS:
                    for contender in self._contenders:
                        self._results.samples[row.key][contender.name].append(self._sample(contender, row))
            self._watch("loaded")
        finally:
            for contender in reversed(self._contenders):
                contender.stop()
        if self._capacity:
            self._results.foreign = max(0.0, (self._busy - self._known) / self._capacity)
        return self._results

    def _starts(self) -> None:
        """Start every contender `rounds` times in turns; the last start stays."""
        self._say("starting")
        self._contenders[0].start()
        for number in range(self._plan.rounds + 1):
            for contender in self._proxies:
                if number > contender.starts:
                    continue
                contender.stop()
                seconds = contender.start()
                if number:  # the first start fills page cache and byte code
                    self._rest(contender, "start", seconds)

    def _warm(self, contender: Contender) -> None:
        """First requests: loads accelerd's models, opens connections; then puts the engines on their core."""
        for row in ROWS:
            self._load(contender, row, 0.05)
        contender.settle()

    def _sample(self, contender: Contender, row: Row) -> dict[str, float]:
        """One contender under one row's load."""
        own, engines = contender.processes()
        cores = self._setup.cores.all()
        cpu, engine_cpu = usage.cpu_seconds(own), usage.cpu_seconds(engines)
        others, busy = _children_seconds(), host.busy_seconds(cores)
        report = self._load(contender, row, self._plan.seconds)
        cpu = usage.cpu_seconds(own) - cpu
        self._known += cpu + usage.cpu_seconds(engines) - engine_cpu + _children_seconds() - others
        self._busy += host.busy_seconds(cores) - busy
        self._capacity += report["seconds"] * len(cores)
        if set(contender.processes()[1]) != set(engines):
            self._results.problems.append(
                f"{contender.name}, {row.title}: an engine was replaced\n{contender.output()}"
            )
        if report["errors"]:
            what = f"{report['errors']} failed requests, the first: {report['complaint']}"
            self._results.problems.append(f"{contender.name}, {row.title}: {what}")
        latency, requests = report["latency_us"], report["requests"]
        sample = {
            "rps": requests / report["seconds"],
            "p50": latency["p50"],
            "p99": latency["p99"],
            "requests": requests,
        }
        if own:
            sample["cpu"] = cpu / requests * 1e6
        if row.chunks:
            sample |= {f"ttft_{name}": report["ttft_us"][name] for name in ("p50", "p99")}
            sample |= {f"delay_{name}": report["delay_us"][name] for name in ("p50", "p99")}
            if own:
                sample["cpu_chunk"] = cpu / report["delay_us"]["n"] * 1e6
        return sample

    def _load(self, contender: Contender, row: Row, seconds: float) -> dict[str, Any]:
        """Run the load program to its end; its report."""
        argv = [self._setup.load, contender.port, row.connections, seconds, row.chunks, row.segments, row.path, KEY]
        with host.on_core(self._setup.cores.load):
            process = subprocess.Popen(
                [str(part) for part in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        out, err = process.communicate(json.dumps(row.body).encode())
        if process.returncode:
            raise BenchError(f"{contender.name}, {row.title}: {err.decode().strip()}\n{contender.output()}")
        report: dict[str, Any] = json.loads(out)
        report["complaint"] = err.decode(errors="replace").strip()
        if not report["requests"]:
            raise BenchError(f"{contender.name}, {row.title}: no request was answered\n{contender.output()}")
        return report

    def _watch(self, state: str) -> None:
        """Memory now, and wake-ups and CPU time while nobody asks for anything."""
        self._say(f"watching at rest ({state}, {self._plan.idle:g} s)")
        time.sleep(min(SETTLE[state], 4 * self._plan.idle))
        before = []
        for contender in self._proxies:
            own, _ = contender.processes()
            memory = usage.memory(own)
            self._rest(contender, f"rss_{state}", memory.rss / 1e6)
            self._rest(contender, f"pss_{state}", memory.pss / 1e6)
            before.append((contender, own, usage.wakeups(own), usage.cpu_seconds(own), time.monotonic()))
        time.sleep(self._plan.idle)
        for contender, own, wakeups, cpu, begun in before:
            seconds = time.monotonic() - begun
            self._rest(contender, f"wakeups_{state}", (usage.wakeups(own) - wakeups) / seconds)
            self._rest(contender, f"cpu_{state}", (usage.cpu_seconds(own) - cpu) / seconds * 1e3)

    def _rest(self, contender: Contender, key: str, value: float) -> None:
        self._results.rest[contender.name].setdefault(key, []).append(value)


def _children_seconds() -> float:
    """CPU time of all finished children, that is of the load program: the contenders still run."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime
