"""What an installed llama-server can do, read from its own `--help`; flags come and go between builds.

Runs `--help` and `--version` once for each file (path, size, time, inode), bounded in time and output, and remembers
the answer in memory and on disk; `--list-devices` once in each life of the daemon. Never decides by build numbers:
packagers set them as they like. Starts nothing but these commands; may be called from several plans at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.engines.base import ContainerProgram, ProgramOutput, fail
from accelerd.engines.llama_server import run_command as asking
from accelerd.engines.llama_server.environment import DEVICES

log = logging.getLogger(__name__)

HELP_TIMEOUT: Final = 20.0  # seconds; a build with GPU backends wakes its drivers first
CACHE_FORMAT: Final = 1
DRIVER_VARIABLES: Final = frozenset(
    {*DEVICES, "AMD_VULKAN_ICD", "VK_ICD_FILENAMES", "VK_DRIVER_FILES", "LD_LIBRARY_PATH"}
)


class ProgramOption(msgspec.Struct, frozen=True):
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


class ProgramIdentity(msgspec.Struct, frozen=True):
    """Which file it was that printed the help."""

    path: str
    size: int
    mtime_ns: int
    inode: int


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


class SavedFeatures(msgspec.Struct):
    """One file of the cache on disk."""

    format: int
    identity: ProgramIdentity
    version: str
    options: list[ProgramOption]


def parse_help(text: str) -> list[ProgramOption]:
    """The options of a help text, of this year's layout or the older indented one; lines that are none are skipped."""
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
        elif line.startswith(" " * 12):
            body.append(line.strip())
        elif line.strip():  # a section's title, or what a driver had to say
            close()
            head = None
    close()
    return options


_NAME = re.compile(r"--?[A-Za-z][\w.-]*(?=[\s,]|$)")


def _head(line: str) -> tuple[tuple[str, ...], str, str] | None:
    """`-c,    --ctx-size N     size of …` as names, hint and the beginning of the description."""
    text = line.lstrip(" ")
    if len(line) - len(text) > 8 or not _NAME.match(text):
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
    if match := re.fullmatch(r"\{([\w.+-]+(?:,[\w.+-]+)+)\}|[\[<]([\w.+-]+(?:\|[\w.+-]+)+)[\]>]", hint):
        yield from re.split(r"[|,]", match[1] or match[2])
    elif match := re.search(r"allowed values: ([\w.+-]+(?:, ?[\w.+-]+)*)", text):
        yield from re.split(r", ?", match[1])
    else:
        yield from (m[1] for line in body if (m := re.match(r"- ([\w.+-]+)(?: \(default\))?:", line)))


class FeatureReader:
    """Reads and remembers the features of binaries. `cache` is a directory; None: nothing is kept on disk."""

    def __init__(self, cache: Path | None, timeout: float = HELP_TIMEOUT) -> None:
        self._cache = cache
        self._timeout = timeout
        self._known: dict[str, tuple[ProgramIdentity, Features]] = {}
        self._inside: dict[str, Features] = {}
        self._devices: dict[tuple[object, ...], str] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def read(self, binary: str, env: Mapping[str, str]) -> Features:
        """The features of this executable, run in this environment when it is not known yet.

        Raises AccelError('model_failed') when it does not print a help text.
        """
        identity, script = await asyncio.to_thread(_identify, binary)
        # Two plans at once run one --help. A lock and no shared task: a cancelled caller takes nobody with it.
        async with self._locks.setdefault(identity.path, asyncio.Lock()):
            known = self._known.get(identity.path)
            if known and known[0] == identity:
                return known[1]
            # What a wrapper script starts may change while the script stays: it is asked again by each daemon.
            file = None if script or self._cache is None else self._cache / _cache_name(identity)
            saved = await asyncio.to_thread(_load, file, identity) if file else None
            if saved is None:
                saved = await self._ask(identity, env)
                if file:
                    await asyncio.to_thread(_save, file, saved)
            features = Features(identity.path, saved.version, {n: o for o in saved.options for n in o.names})
            self._known[identity.path] = (identity, features)
            return features

    async def read_inside(self, found: ContainerProgram, ask: Callable[..., Awaitable[ProgramOutput]]) -> Features:
        """The same of a program in a container, which `ask` runs there; remembered until the daemon ends."""
        known = self._inside.get(found.build)
        if known is None:

            async def run(flag: str) -> tuple[int | None, str, str]:
                answer = await ask(found.program, flag)
                return answer.status, answer.out, answer.err

            version, options = await _ask(found.program, run)
            known = Features(found.program, version, {name: o for o in options for name in o.names})
            self._inside[found.build] = known
        return known

    async def devices(self, features: Features, env: Mapping[str, str]) -> str:
        """What `--list-devices` of this executable says, with what its drivers say; empty where it says nothing.

        Remembered for one environment of the drivers; not on disk, for it is this machine's drivers that answer.
        """
        if features.find("--list-devices") is None:
            return ""
        chosen = tuple(sorted((name, value) for name, value in env.items() if name in DRIVER_VARIABLES))
        key = (features.binary, chosen)

        async def run() -> str:
            _, out, err = await self._run(features.binary, "--list-devices", env)
            return f"{out}\n{err}"

        return await self._listed(key, run)

    async def devices_inside(
        self, found: ContainerProgram, features: Features, ask: Callable[..., Awaitable[ProgramOutput]]
    ) -> str:
        """The same of a program in a container."""
        if features.find("--list-devices") is None:
            return ""

        async def run() -> str:
            answer = await ask(found.program, "--list-devices")
            return f"{answer.out}\n{answer.err}"

        return await self._listed((found.build,), run)

    async def _listed(self, key: tuple[object, ...], run: Callable[[], Awaitable[str]]) -> str:
        known = self._devices.get(key)
        if known is None:
            try:
                known = self._devices[key] = await run()
            except AccelError as error:  # a start does not fail for it
                log.info("the devices of %s are not known: %s", key[0], error.message)
                return ""
        return known

    async def _ask(self, identity: ProgramIdentity, env: Mapping[str, str]) -> SavedFeatures:
        version, options = await _ask(identity.path, lambda flag: self._run(identity.path, flag, env))
        return SavedFeatures(CACHE_FORMAT, identity, version, options)

    async def _run(self, path: str, flag: str, env: Mapping[str, str]) -> tuple[int | None, str, str]:
        """Exit status and the two outputs."""
        answer = await asking.run((path, flag), env, self._timeout)
        return answer.status, answer.out, answer.err


async def _ask(
    path: str, run: Callable[[str], Awaitable[tuple[int | None, str, str]]]
) -> tuple[str, list[ProgramOption]]:
    """Version and options, from what `run` says for a flag: exit status and the two outputs."""
    status, out, err = await run("--help")
    options = parse_help(out) or parse_help(err)
    if not options:
        said = (err or out).strip().splitlines()
        last = f", last line: {said[-1][:200]!r}" if said else ""
        problem = f"cannot use {path}: its --help printed no options (status {status}{last})"
        fail(Cause.NO_PROGRAM, problem, "is it a llama-server?")
    _, version_out, version_err = await run("--version")
    match = re.search(r"^version: (.+)$", version_err + "\n" + version_out, re.MULTILINE)
    return match[1].strip() if match else "unknown version", options


def _identify(binary: str) -> tuple[ProgramIdentity, bool]:
    """Which file this is, and whether it is a script."""
    try:
        path = os.path.realpath(binary)
        with open(path, "rb") as f:
            stat = os.fstat(f.fileno())
            script = f.read(2) == b"#!"
    except OSError as e:
        raise AccelError("model_failed", f"cannot read {binary}: {e.strerror}", cause=Cause.NO_PROGRAM.value) from e
    return ProgramIdentity(path, stat.st_size, stat.st_mtime_ns, stat.st_ino), script


def _cache_name(identity: ProgramIdentity) -> str:
    return f"llama-server-{hashlib.sha256(os.fsencode(identity.path)).hexdigest()[:16]}.json"


def _load(file: Path, identity: ProgramIdentity) -> SavedFeatures | None:
    """What the file says of exactly this binary; anything else counts as nothing."""
    try:
        saved = msgspec.json.decode(file.read_bytes(), type=SavedFeatures)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as e:
        log.warning("cannot use the cache %s, it is made anew: %s", file, e)
        return None
    return saved if saved.format == CACHE_FORMAT and saved.identity == identity and saved.options else None


def _save(file: Path, saved: SavedFeatures) -> None:
    """Old or new, never half. Only a convenience: a full or read-only disk is logged, not raised."""
    temporary = None
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as f:
            temporary = f.name
            f.write(msgspec.json.encode(saved))
        os.replace(temporary, file)
    except OSError as e:
        log.warning("cannot keep the cache %s: %s", file, e)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
