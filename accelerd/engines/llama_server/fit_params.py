"""Asks llama-fit-params what a model takes of memory, where that program lies beside the engine's llama-server.

It reads the file's header with llama.cpp's own code and reserves nothing. Owns where it is found, what an answer
depends on, and what counts as none: it aborts on files it does not like. Never starts a server, never downloads, never
raises for what the tool does; starts nothing but it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct, structs

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec
from accelerd.engines.base import ContainerAccess, ContainerProgram, ProgramOutput
from accelerd.engines.llama_server import run_command as asking
from accelerd.engines.llama_server.features import DRIVER_VARIABLES, FeatureReader, Features
from accelerd.engines.llama_server.fit_cache import FitCache
from accelerd.engines.llama_server.fit_command import FitAnswer, FitRow, arguments, parse, ways

__all__ = ["FitAnswer", "FitParams", "FitRow"]

log = logging.getLogger(__name__)

SERVER: Final = "llama-server"
TOOL: Final = "llama-fit-params"
TIMEOUT: Final = 10.0  # seconds; it takes 0.05 to 0.5
AT_ONCE: Final = 4
FILE: Final = "llama-fit-params.json"

Run = Callable[[tuple[str, ...], Mapping[str, str], float], Awaitable[ProgramOutput]]


class _Tool(Struct, frozen=True):
    """The tool of one build: how it is run, and what names exactly it."""

    path: str
    stamp: tuple[object, ...]
    features: Callable[[], Awaitable[Features]]
    run: Callable[[tuple[str, ...]], Awaitable[ProgramOutput]]


class FitParams:
    """One for all models. `cache`: a directory; None: answers are kept in memory only."""

    def __init__(
        self,
        cache: Path | None,
        *,
        features: FeatureReader | None = None,
        run: Run = asking.run,
        timeout: float = TIMEOUT,
    ) -> None:
        self._cache = FitCache(cache / FILE if cache else None)
        self._features = features or FeatureReader(cache, timeout)
        self._run = run
        self._timeout = timeout
        self._useless: dict[tuple[object, ...], FitAnswer | None] = {}
        # A lock serves the questions whose keys fall to it: the same question is never asked twice at once.
        self._locks = [asyncio.Lock() for _ in range(AT_ONCE)]

    async def ask(
        self,
        spec: ModelSpec,
        features: Features,
        weights: Sequence[str],
        env: Mapping[str, str],
        *,
        devices: Sequence[str] = (),
        listed: str = "",
    ) -> FitAnswer | None:
        """What the tool beside `features.binary` says; None: there is none.

        `weights`: all files of the model; `env`: as for `--help`; `devices`: the engine's names of those it may use,
        (): all; `listed`: what `--list-devices` said. With several GPUs the tool divides a model by what is free at the
        moment, as the server does: of such an answer only the sums hold later.
        """
        found = await asyncio.to_thread(_beside, features.binary)
        if found is None:
            return None
        path, stamp = found
        drivers = tuple(sorted((name, value) for name, value in env.items() if name in DRIVER_VARIABLES))

        async def run(told: tuple[str, ...]) -> ProgramOutput:
            return await self._run((path, *told), env, self._timeout)

        tool = _Tool(path, (*stamp, drivers), lambda: self._features.read(path, env), run)
        return await self._answer(tool, spec, features, weights, devices, listed)

    async def ask_inside(
        self,
        spec: ModelSpec,
        seen: ModelSpec,
        features: Features,
        weights: Sequence[str],
        found: ContainerProgram,
        place: ContainerAccess,
        *,
        devices: Sequence[str] = (),
        listed: str = "",
    ) -> FitAnswer | None:
        """The same of the tool in a container; `seen` is the model as it is called there, `weights` as here."""
        path = os.path.join(os.path.dirname(found.program), _name(found.program))
        # By its name: an image with a server of its own would run that instead. And the files must be seen.
        there = replace(spec, binary=path, mounts=(*spec.mounts, *_folders(spec, weights)))

        async def ask(*words: str) -> ProgramOutput:
            try:
                async with asyncio.timeout(self._timeout):
                    return await place.ask(there, *words)
            except TimeoutError:
                raise AccelError("model_failed", f"{path} did not finish within {self._timeout:g} s") from None

        program = structs.replace(found, program=path, build=f"{found.build} {TOOL}")
        tool = _Tool(
            path,
            (program.build,),
            lambda: self._features.read_inside(program, ask),
            lambda told: ask(path, *told),
        )
        return await self._answer(tool, seen, features, weights, devices, listed, may_be_missing=True)

    async def _answer(
        self,
        tool: _Tool,
        spec: ModelSpec,
        server: Features,
        weights: Sequence[str],
        devices: Sequence[str],
        listed: str,
        *,
        may_be_missing: bool = False,
    ) -> FitAnswer | None:
        if tool.stamp in self._useless:
            return self._useless[tool.stamp]
        if spec.path is None:
            return FitAnswer(why_not="llama-server downloads the model by itself")
        try:
            options = await tool.features()
        except AccelError as error:
            useless = FitAnswer(why_not=error.message)
            if error.fields.get("cause") != Cause.NO_PROGRAM.value:
                return useless  # the container may be running tomorrow
            return self._never(tool, None if may_be_missing else useless, error.message)
        if wrong := _unusable(tool.path, options, server):
            return self._never(tool, FitAnswer(why_not=wrong), wrong)
        try:
            told, left_out = arguments(spec, server, options, devices)
        except AccelError as error:
            return FitAnswer(why_not=error.message)
        try:
            files = await asyncio.to_thread(_stamps, weights)
        except OSError as e:
            return FitAnswer(why_not=f"cannot read {e.filename}: {e.strerror}")
        shown = re.sub(r"\([^()]*MiB[^()]*\)", "", listed)  # less what is free at the moment
        key = hashlib.sha256(msgspec.json.encode((files, told, tool.stamp, options.version, shown))).hexdigest()
        how = ways(options)
        async with self._locks[int(key[:8], 16) % AT_ONCE]:
            known = await self._cache.find(key)
            if known is None:
                try:
                    known = await _asked(tool, told, how, left_out)
                except AccelError as error:  # it may have time tomorrow
                    return FitAnswer((), left_out, error.message)
                await self._cache.keep(key, known)
            return known

    def _never(self, tool: _Tool, answer: FitAnswer | None, why: str) -> FitAnswer | None:
        """This tool is asked no more until it is another one, or another daemon."""
        log.info("%s is not asked: %s", tool.path, why)
        self._useless[tool.stamp] = answer
        return answer


async def _asked(
    tool: _Tool, told: tuple[str, ...], how: Sequence[tuple[str, ...]], left_out: tuple[str, ...]
) -> FitAnswer:
    """Asked in one way after the other, until it fails or has said something. AccelError: it does not run or end."""
    answer = ProgramOutput(0, "", "")
    for way in how:
        answer = await tool.run((*told, *way))
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


def _unusable(path: str, tool: Features, server: Features) -> str:
    """Why a program that prints this help is not asked; empty: it is."""
    if tool.find("--fit-print") is None:  # perhaps a server, which would be started
        return f"{path} knows no --fit-print"
    if tool.version != server.version:
        return f"{path} is of another build ({tool.version}) than {server.binary} ({server.version})"
    return ""


def _name(server: str) -> str:
    """The tool's name beside a server: one with a suffix has a tool with the same."""
    name = os.path.basename(server)
    return name.replace(SERVER, TOOL) if SERVER in name else TOOL


def _beside(server: str) -> tuple[str, tuple[object, ...]] | None:
    """The tool's path, and what tells it from any other."""
    for place in (server, os.path.realpath(server)):
        path = os.path.join(os.path.dirname(place), _name(place))
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path, _stamp(os.path.realpath(path))
    return None


def _stamps(files: Sequence[str]) -> list[tuple[object, ...]]:
    return [_stamp(file) for file in files]


def _stamp(file: str) -> tuple[object, ...]:
    """Which file this is."""
    found = os.stat(file)
    return (os.path.abspath(file), found.st_size, found.st_mtime_ns, found.st_ino)


def _folders(spec: ModelSpec, weights: Sequence[str]) -> list[str]:
    """Mounts of the model's folders, for a container that is made for the question. A download is a link elsewhere."""
    if spec.home not in ("podman", "docker"):
        return []
    paths = [path for file in weights for path in (file, os.path.realpath(file))]
    folders = {os.path.dirname(path) for path in paths}
    return [f"{folder}:{folder}:ro" for folder in sorted(folders) if ":" not in folder]
