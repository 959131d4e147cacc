"""What llama-fit-params is told for a model, and how its answer is read. Pure.

It is told what llama-server would be told, less what has nothing to do with memory and what this build of it does not
know. What it says of compute buffers is an upper bound for a server: it counts a row of logits for every token of a
physical batch, of which a server that generates keeps one for each slot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from accelerd.config.model import ModelSpec
from accelerd.engines.base import Endpoint
from accelerd.engines.llama_server import argv
from accelerd.engines.llama_server.extra import normal
from accelerd.engines.llama_server.features import Features, ProgramOption

MIB: Final = 1 << 20
NOWHERE: Final = Endpoint(port=1)  # nothing listens: the tool never sees it

# Options that change what is reserved, by one of their names; the tool is told them where it knows them.
SIZES: Final = frozenset({
    "--model", "--ctx-size", "--batch-size", "--ubatch-size", "--parallel", "--cache-type-k", "--cache-type-v",
    "--flash-attn", "--n-gpu-layers", "--split-mode", "--tensor-split", "--main-gpu", "--device", "--override-tensor",
    "--cpu-moe", "--n-cpu-moe", "--n-cpu-ffn", "--kv-offload", "--no-kv-offload", "--no-repack", "--no-host",
    "--swa-full", "--load-mode", "--no-mmap", "--mlock", "--lazy-mode", "--op-offload", "--no-op-offload",
    "--override-kv", "--offline",
})  # fmt: skip
# What it does not count, whether it knows the name or not; --kv-unified as it is written, its opposite changes nothing.
BESIDE: Final = frozenset({
    "--mmproj", "--mmproj-url", "--spec-draft-model", "--model-draft", "--spec-type", "--lora", "--lora-scaled",
    "--control-vector", "--control-vector-scaled", "--rpc",
})  # fmt: skip
UNIFIED: Final = frozenset({"--kv-unified", "-kvu", "--kv-unified-per-slot"})
JSONL: Final = "--log-jsonl"
TRIES: Final = 3
ROW: Final = re.compile(r"(\S+) (\d+) (\d+) (\d+) *")


class FitRow(msgspec.Struct, frozen=True):
    """One kind of memory. Bytes, of whole MiB rounded down."""

    name: str  # "Host", "CUDA0", "Vulkan1", "CPU_REPACK"
    kind: Literal["host", "device", "buffer_type"]  # a further type of buffer lies in main memory
    model: int
    context: int
    compute: int


class FitAnswer(msgspec.Struct, frozen=True):
    """What the tool says of one model with one set of settings. Without rows it is not known: `why_not` says why."""

    rows: tuple[FitRow, ...] = ()
    left_out: tuple[str, ...] = ()  # options that change the sizes, but that it was not told or does not count
    why_not: str = ""

    @property
    def model(self) -> int:
        return sum(row.model for row in self.rows)

    @property
    def context(self) -> int:
        return sum(row.context for row in self.rows)

    @property
    def compute(self) -> int:
        """An upper bound, see the module."""
        return sum(row.compute for row in self.rows)


def arguments(
    spec: ModelSpec, server: Features, tool: Features, devices: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the tool is told, and which options are left out. AccelError: the server cannot be told so either."""
    words = argv.build(spec, server, NOWHERE).argv[1:]
    told: list[str] = []
    left_out: list[str] = []
    while words:
        name = normal(words[0])
        option = server.options.get(name) or tool.options.get(name)
        size = 1 + _values(option, words[1:])
        group, words = words[:size], words[size:]
        names = frozenset(option.names) if option else frozenset({name})
        if names & BESIDE or name in UNIFIED:
            left_out.append(name)
        elif names & SIZES:
            if tool.find(name):
                told += group
            elif "--offline" not in names:
                left_out.append(name)
    if devices:
        if device := tool.pick("--device", "-dev"):
            told += [device, ",".join(devices)]
        else:
            left_out.append("--device")
    return (*told, "--fit-print", "on"), tuple(left_out)


def ways(tool: Features) -> tuple[tuple[str, ...], ...]:
    """How to ask, one after the other until there is an answer: what is added to the arguments.

    JSON has a row for every type of buffer, but is now and then lost: the tool ends before its log is written. Plain
    lines are never lost, but leave out weights that would be repacked for the CPU; so there is to be no repacking.
    """
    jsonl, repack = tool.pick(JSONL), tool.pick("--no-repack", "-nr")
    return (*([(jsonl,)] * TRIES if jsonl else []), (repack,) if repack else ())


def _values(option: ProgramOption | None, following: Sequence[str]) -> int:
    """How many values an option takes; where nobody knows it, what looks like one."""
    if option is None:
        return 1 if following and not following[0].startswith("-") else 0
    if re.fullmatch(r"[A-Z]+( [A-Z]+)+", option.hint):
        return option.hint.count(" ") + 1
    return 1 if option.hint else 0


def parse(out: str, way: tuple[str, ...] = ()) -> tuple[FitRow, ...]:
    """The rows of an answer that was asked for in this way; none where it is not there, or makes no sense."""
    rows: tuple[FitRow, ...] = ()
    for line in out.splitlines():
        if JSONL in way:
            rows = _json(line) or rows
        elif match := ROW.fullmatch(line):
            model, context, compute = (int(number) * MIB for number in match.groups()[1:])
            kind: Literal["host", "device"] = "host" if match[1] == "Host" else "device"
            rows += (FitRow(match[1], kind, model, context, compute),)
    # Zero for the model is no answer: there is none without weights.
    return rows if sum(row.model for row in rows) > 0 else ()


def _json(line: str) -> tuple[FitRow, ...]:
    """The rows of one line, if it is the one that has them."""
    try:
        said: Any = json.loads(line)
    except ValueError:
        return ()
    if not isinstance(said, Mapping) or said.get("type") != "fit_memory_breakdown":
        return ()
    data = said.get("data")
    if not isinstance(data, Mapping) or data.get("unit") != "MiB" or not isinstance(data.get("rows"), list):
        return ()
    try:
        rows = msgspec.convert(data["rows"], list[FitRow])
    except msgspec.ValidationError:
        return ()
    if any(min(row.model, row.context, row.compute) < 0 for row in rows):
        return ()
    return tuple(FitRow(row.name, row.kind, row.model * MIB, row.context * MIB, row.compute * MIB) for row in rows)
