"""What an installed llama-server can do, read from its own `--help`; flags come and go between builds.

Runs `--help` and `--version` once for each file (path, size, time, inode) and remembers the answer in memory and on
disk; `--list-devices` once in each life of the daemon. Never decides by build numbers: packagers set them as they like.
Starts nothing but these commands; may be called from several plans at once.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.engines.base import fail
from accelerd.engines.llama_server import output
from accelerd.engines.llama_server.answers import AnswerCache
from accelerd.engines.program import Program

log = logging.getLogger(__name__)

FILE: Final = "llama-server.json"
MOST_KNOWN: Final = 16  # programs; some 100 kB each


class ProgramOption(Struct, frozen=True):
    """One entry of the help text."""

    names: tuple[str, ...]
    hint: str = ""  # the placeholder of its value, "N"; "": takes none
    choices: tuple[str, ...] = ()  # values the help lists, where it lists them
    env: tuple[str, ...] = ()
    text: str = ""

    @property
    def removed(self) -> bool:
        """Still listed, but only to tell what replaced it."""
        return "argument has been removed" in self.text


class Features(Struct, frozen=True):
    """The options of one build, by every name they have."""

    binary: str
    version: str
    options: Mapping[str, ProgramOption]

    def find(self, *names: str) -> ProgramOption | None:
        """The first of the options that this build still has."""
        for name in names:
            option = self.options.get(name)
            if option is not None and not option.removed:
                return option
        return None

    def pick(self, *names: str) -> str | None:
        """The first of the names that this build knows."""
        return next((name for name in names if self.find(name)), None)


class HelpText(Struct):
    """What a program said of itself."""

    version: str
    options: list[ProgramOption]


def parse_help(text: str) -> list[ProgramOption]:
    """The options of a help text, of this year's layout or the older indented ones; lines that are none are skipped."""
    options: list[ProgramOption] = []
    head: tuple[tuple[str, ...], str] | None = None
    body: list[str] = []

    def close() -> None:
        if head is not None:
            options.append(_option(head[0], head[1], body))

    for line in text.splitlines():
        parsed = _head(line)
        if parsed:
            close()
            names, hint, rest = parsed
            head, body = (names, hint), [rest]
        elif line.startswith(DESCRIPTION):
            body.append(line.strip())
        elif line.strip():  # a section's title, or what a driver had to say
            close()
            head = None
    close()
    return options


DESCRIPTION: Final = " " * 12  # where lines of a description begin, at least; names are indented by less
_NAME = re.compile(r"--?[A-Za-z][\w.-]*(?=[\s,]|$)")
_PLURAL = re.compile(r"(--[\w-]+)\(s\)")  # "--embedding(s)"


def _head(line: str) -> tuple[tuple[str, ...], str, str] | None:
    """`-c,    --ctx-size N     size of …` as names, hint and the beginning of the description."""
    text = _PLURAL.sub(r"\1, \1s", line.lstrip(" "))
    if line.startswith(DESCRIPTION) or not _NAME.match(text):
        return None
    names: list[str] = []
    hint = ""
    while match := _NAME.match(text):
        names.append(match[0])
        text = text[match.end() :]
        value = re.match(r" (\S.*?)(?=\s{2,}|,\s+-|$)", text)  # one blank: a value; more: the description
        if value:
            hint = value[1]
            text = text[value.end() :]
        if not (comma := re.match(r",\s+(?=-)", text)):
            break
        text = text[comma.end() :]
    return tuple(names), hint, text.strip()


def _option(names: tuple[str, ...], hint: str, body: list[str]) -> ProgramOption:
    text = " ".join(part for part in body if part)
    env = tuple(re.findall(r"\(env: (\w+)\)", text))
    return ProgramOption(names=names, hint=hint, choices=tuple(_choices(hint, body, text)), env=env, text=text[:1000])


def _choices(hint: str, body: list[str], text: str) -> Iterator[str]:
    if match := re.fullmatch(r"\{([\w.+-]+(?:,[\w.+-]+)+)\}|[\[<(]([\w.+-]+(?:\|[\w.+-]+)+)[\]>)]", hint):
        yield from re.split(r"[|,]", match[1] or match[2])
    elif match := re.search(r"allowed values: ([\w.+-]+(?:, ?[\w.+-]+)*)", text):
        yield from re.split(r", ?", match[1])
    else:
        yield from (m[1] for line in body if (m := re.match(r"- ([\w.+-]+)(?: \(default\))?:", line)))


class FeatureReader:
    """Reads and remembers the features of programs. `cache` is a directory; None: nothing is kept on disk."""

    def __init__(self, cache: Path | None) -> None:
        self._helps = AnswerCache(cache / FILE if cache else None, HelpText, MOST_KNOWN)
        self._devices: dict[tuple[str | int, ...], str] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def read(self, program: Program) -> Features:
        """AccelError('model_failed') when it does not print a help text."""
        key = "\n".join(map(str, program.identity))
        # Two plans at once run one --help. A lock and no shared task: a cancelled caller takes nobody with it.
        async with self._locks.setdefault(key, asyncio.Lock()):
            said = await self._helps.find(key)
            if said is None:
                said = await _ask(program)
                await self._helps.keep(key, said, lasting=program.lasting)
        return Features(program.path, said.version, {name: o for o in said.options for name in o.names})

    async def devices(self, program: Program, features: Features) -> str:
        """What `--list-devices` says, with what the drivers say; empty where it says nothing.

        Remembered for one environment of the drivers; not on disk, for it is this machine's drivers that answer.
        """
        if features.find("--list-devices") is None:
            return ""
        key = (*program.identity, *program.drivers)
        if key not in self._devices:
            try:
                answer = await program.run("--list-devices")
                said = f"{answer.out}\n{answer.err}"
                verbose = features.pick("--verbose", "-v")
                if verbose is not None and output.lacks_driver(said):
                    more = await program.run(verbose, "--list-devices")
                    said = "\n".join([*output.vulkan_drivers(f"{more.out}\n{more.err}"), said])
            except AccelError as error:  # a start does not fail for it
                log.info("the devices of %s are not known: %s", program.path, error.message)
                return ""
            self._devices[key] = said
        return self._devices[key]


async def _ask(program: Program) -> HelpText:
    answer = await program.run("--help")
    options = parse_help(answer.out) or parse_help(answer.err)
    if not options:
        said = (answer.err or answer.out).strip().splitlines()
        last = f", last line: {said[-1][:200]!r}" if said else ""
        problem = f"cannot use {program.path}: its --help printed no options (status {answer.status}{last})"
        fail(Cause.NO_PROGRAM, problem, "is it a llama-server?")
    answer = await program.run("--version")
    match = re.search(r"^version: (.+)$", f"{answer.err}\n{answer.out}", re.MULTILINE)
    return HelpText(match[1].strip() if match else "unknown version", options)
