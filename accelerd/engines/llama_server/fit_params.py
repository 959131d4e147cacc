"""Asks llama-fit-params what a model takes of memory, where that program lies beside the engine's llama-server.

It reads the file's header with llama.cpp's own code and reserves nothing. It is told what llama-server would be told,
less what has nothing to do with memory and what this build of it does not know. What it says of compute buffers is an
upper bound for a server: it counts a row of logits for every token of a physical batch, of which a server that
generates keeps one for each slot. Never starts a server, never downloads, never raises for what the tool does; it
aborts on files that it does not like.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from accelerd.base.decoding import from_json
from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.config.flags import flag_name
from accelerd.config.model import ModelSpec
from accelerd.engines.base import ContainerAccess, ContainerProgram, Endpoint, ProgramOutput, fail
from accelerd.engines.llama_server import argv
from accelerd.engines.llama_server.answers import AnswerCache
from accelerd.engines.llama_server.environment import DRIVER_VARIABLES
from accelerd.engines.llama_server.features import FeatureReader, Features, ProgramOption
from accelerd.engines.program import Program, local

log = logging.getLogger(__name__)

SERVER: Final = "llama-server"
TOOL: Final = "llama-fit-params"
TIMEOUT: Final = 10.0  # seconds; it takes 0.05 to 0.5
AT_ONCE: Final = 4
FILE: Final = "llama-fit-params.json"
MOST_KNOWN: Final = 512  # answers; some 200 bytes each
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
ROW: Final = re.compile(r"(\S+) (\d{1,12}) (\d{1,12}) (\d{1,12}) *")


class FitRow(Struct, frozen=True):
    """One kind of memory. Bytes, of whole MiB rounded down."""

    name: str  # "Host", "CUDA0", "Vulkan1", "CPU_REPACK"
    kind: Literal["host", "device", "buffer_type"]  # a further type of buffer lies in main memory
    model: int
    context: int
    compute: int


class FitAnswer(Struct, frozen=True):
    """What the tool says of one model with one set of settings. Without rows it is not known: `why_not` says why."""

    rows: tuple[FitRow, ...] = ()
    left_out: tuple[str, ...] = ()  # options that change the sizes, but that it was not told or does not count
    why_not: str = ""

    @property
    def on_devices(self) -> tuple[FitRow, ...]:
        return tuple(row for row in self.rows if row.kind == "device")

    @property
    def in_main_memory(self) -> tuple[FitRow, ...]:
        return tuple(row for row in self.rows if row.kind != "device")


class FitParams:
    """One for all models. `cache`: a directory; None: answers are kept in memory only."""

    def __init__(self, cache: Path | None, features: FeatureReader) -> None:
        self._cache = AnswerCache(cache / FILE if cache else None, FitAnswer, MOST_KNOWN)
        self._features = features
        self._useless: dict[tuple[str | int, ...], FitAnswer] = {}
        # A lock serves the questions whose keys fall to it: the same question is never asked twice at once.
        self._locks = [asyncio.Lock() for _ in range(AT_ONCE)]

    async def ask(
        self, tool: Program, spec: ModelSpec, server: Features, weights: Sequence[str], listed: str = ""
    ) -> FitAnswer:
        """What the tool says of a model as it is called where the tool runs.

        `weights`: all files of the model, as they are called here; `listed`: what `--list-devices` of the server said.
        With several GPUs the tool divides a model by what is free at the moment, as the server does: of such an answer
        only the sums hold later.
        """
        if tool.identity in self._useless:
            return self._useless[tool.identity]
        try:
            options = await self._features.read(tool)
            if wrong := _unusable(options, server):
                fail(Cause.NO_PROGRAM, wrong)
        except AccelError as error:
            useless = FitAnswer(why_not=error.message)
            if error.fields.get("cause") == Cause.NO_PROGRAM.value:  # a container may be running tomorrow
                self._useless[tool.identity] = useless
                log.info("%s is not asked: %s", tool.path, error.message)
            return useless
        try:
            told, left_out = arguments(spec, server, options)
            files = await asyncio.to_thread(lambda: [_stamp(file) for file in weights])
        except AccelError as error:
            return FitAnswer(why_not=error.message)
        except OSError as e:
            return FitAnswer(why_not=f"cannot read {e.filename}: {e.strerror}")
        shown = re.sub(r"\([^()]*MiB[^()]*\)", "", listed)  # less what is free at the moment
        asked = (files, told, tool.identity, tool.drivers, options.version, shown)
        key = hashlib.sha256(msgspec.json.encode(asked)).hexdigest()
        async with self._locks[int(key[:8], 16) % AT_ONCE]:
            known = await self._cache.find(key)
            if known is None:
                try:
                    known = await _asked(tool, told, ways(options), left_out)
                except AccelError as error:  # it may have time tomorrow
                    return FitAnswer((), left_out, error.message)
                # A tool that could not say it may be mended or replaced.
                await self._cache.keep(key, known, lasting=bool(known.rows))
            return known


def beside(server: str, env: Mapping[str, str]) -> Program | None:
    """The tool of a server on this machine; None: there is none. `env`: as for `--help`. Blocking."""
    for place in (server, os.path.realpath(server)):
        path = os.path.join(os.path.dirname(place), _name(place))
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return local(path, env, TIMEOUT, DRIVER_VARIABLES)
    return None


def inside(spec: ModelSpec, found: ContainerProgram, place: ContainerAccess, weights: Sequence[str]) -> Program:
    """The tool of a server in a container, where it may be missing. `weights`: as they are called here."""
    path = os.path.join(os.path.dirname(found.program), _name(found.program))
    # By its name: an image with a server of its own would run that instead. And the files must be seen.
    there = replace(spec, binary=path, mounts=(*spec.mounts, *_folders(spec, weights)))

    async def run(*words: str) -> ProgramOutput:
        try:
            async with asyncio.timeout(TIMEOUT):
                return await place.ask(there, path, *words)
        except TimeoutError:
            fail(Cause.REFUSED, f"{path} did not finish within {TIMEOUT:g} s")

    return Program(path, (found.build, TOOL), run)


def arguments(spec: ModelSpec, server: Features, tool: Features) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the tool is told, and which options are left out. AccelError: the server cannot be told so either."""
    words = argv.build(spec, server, NOWHERE).argv[1:]
    told: list[str] = []
    left_out: list[str] = []
    while words:
        name = flag_name(words[0])
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
        said = from_json(line)
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


async def _asked(
    tool: Program, told: tuple[str, ...], how: Sequence[tuple[str, ...]], left_out: tuple[str, ...]
) -> FitAnswer:
    """Asked in one way after the other, until it fails or has said something. AccelError: it does not run or end."""
    answer = ProgramOutput(0, "", "")
    for way in how:
        answer = await tool.run(*told, *way)
        if answer.status:
            break
        if rows := parse(answer.out, way):
            return FitAnswer(rows, left_out)
    return FitAnswer((), left_out, _why_not(tool.path, answer))


def _why_not(path: str, answer: ProgramOutput) -> str:
    """Why an answer is none."""
    said = [line.strip() for line in (answer.err or answer.out).splitlines() if line.strip()]
    if answer.status:
        how = f"signal {-answer.status}" if answer.status < 0 else f"status {answer.status}"
        return f"{path} ended with {how}" + (f": {said[-1][:200]}" if said else "")
    return f"{path} said nothing of memory"


def _unusable(tool: Features, server: Features) -> str:
    """Why a program that prints this help is not asked; empty: it is."""
    if tool.find("--fit-print") is None:  # perhaps a server, which would be started
        return f"{tool.binary} knows no --fit-print"
    if tool.version != server.version:
        return f"{tool.binary} is of another build ({tool.version}) than {server.binary} ({server.version})"
    return ""


def _name(server: str) -> str:
    """The tool's name beside a server: one with a suffix has a tool with the same."""
    name = os.path.basename(server)
    return name.replace(SERVER, TOOL) if SERVER in name else TOOL


def _stamp(file: str) -> tuple[object, ...]:
    found = os.stat(file)
    return (os.path.abspath(file), found.st_size, found.st_mtime_ns, found.st_ino)


def _folders(spec: ModelSpec, weights: Sequence[str]) -> list[str]:
    """Mounts of the model's folders, for a container that is made for the question. A download is a link elsewhere."""
    if spec.home not in ("podman", "docker"):
        return []
    paths = [path for file in weights for path in (file, os.path.realpath(file))]
    folders = {os.path.dirname(path) for path in paths}
    return [f"{folder}:{folder}:ro" for folder in sorted(folders) if ":" not in folder]
