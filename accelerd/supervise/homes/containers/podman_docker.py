"""podman and docker as engines of containers: inspect, start, stop, kill, remove, pull, in commands that both have; and
a lock for each container.

A pull is watched: podman draws bars for a terminal, and here they are read as bytes and lines; one that draws otherwise
is still pulled with, only without numbers. Knows no models and decides nothing. HomeError says what the engine said.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import math
import os
import re
import struct
import termios
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import Struct

from accelerd.base.decoding import from_json
from accelerd.base.ports import Clock
from accelerd.base.sizes import human_size
from accelerd.supervise.homes.containers.commands import PATIENCE, CommandResult, CommandRunner
from accelerd.supervise.homes.home import HomeError

log = logging.getLogger(__name__)

LABEL_INSTANCE: Final = "io.accelerd.instance"
LABEL_OWNER: Final = "io.accelerd.owner"
LABELS_TOOLBOX: Final = ("com.github.containers.toolbox", "com.github.debarshiray.toolbox")
PULL_PATIENCE: Final = 6 * 3600.0  # s; images have tens of gigabytes, and a person may stop it


@dataclass(frozen=True)
class Container:
    """What the engine says of one container."""

    id: str
    name: str
    running: bool
    status: str  # "running", "exited", "stopping", …
    pid: int  # on the host; 0: none
    exit_code: int
    oom_killed: bool
    image: str  # as it was named
    image_id: str
    exec_ids: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[tuple[str, int], ...] = ()  # published: host address, host port; TCP only
    created: str = ""  # in the words of RFC 3339

    @property
    def toolbox(self) -> bool:
        return any(label in self.labels for label in LABELS_TOOLBOX)


class ContainerEngine:
    """`name` is podman or docker."""

    def __init__(self, name: str, tools: CommandRunner) -> None:
        self.name = name
        self.tools = tools

    async def call(
        self, *args: str, within: float = PATIENCE, check: bool = True, output: int | None = None
    ) -> CommandResult:
        """One call. HomeError when `check` and it fails."""
        done = await self.tools.call(self.name, *args, within=within, output=output)
        if check and done.status != 0:
            raise HomeError(f"{self.name} {args[0]}: {done.why()}")
        return done

    async def inspect(self, container: str) -> Container | None:
        """None: there is none of that name."""
        done = await self.call("container", "inspect", container, check=False)
        if done.status != 0:
            if "no such" in (done.err + done.out).lower():
                return None
            raise HomeError(f"{self.name} does not describe container {container}: {done.why()}")
        return _container(from_json(done.out)[0])

    async def containers(self) -> list[Container]:
        """All of this user's, running or not."""
        ids = (await self.call("ps", "--all", "--quiet", "--no-trunc")).out.split()
        # Not checked: one that went meanwhile is an error, beside the others' descriptions.
        found = from_json((await self.call("container", "inspect", *ids, check=False)).out or "[]") if ids else []
        return [_container(one) for one in found]

    async def start(self, container: str) -> None:
        """Start it in a scope of its own: it must not end with the daemon's unit."""
        argv = (*self.tools.outside(), self.tools.find(self.name), "start", container)
        done = await self.tools.call(*argv)
        if done.status != 0:
            raise HomeError(f"cannot start container {container}: {done.why()}")

    async def stop(self, container: str, grace: float) -> None:
        """Its stop signal, and SIGKILL after `grace` seconds."""
        await self.call("stop", "--time", str(math.ceil(grace)), container, within=grace + PATIENCE, check=False)

    async def kill(self, container: str, number: int) -> None:
        await self.call("kill", "--signal", str(number), container, check=False)

    async def remove(self, container: str) -> None:
        """Remove it, running or not; it may be gone already. HomeError when it is still there afterwards."""
        time = ("--time", "0") if self.name == "podman" else ()
        done = await self.call("rm", "--force", *time, container, check=False)
        if done.status != 0 and await self.inspect(container) is not None:
            raise HomeError(f"cannot remove container {container}: {done.why()}")

    async def rename(self, container: str, name: str) -> None:
        await self.call("rename", container, name)

    async def end_session(self, container: str, session: str) -> bool:
        """Forget an exec session whose program has ended. Only podman leaves them behind."""
        done = await self.call("container", "cleanup", "--exec", session, "--rm", container, check=False)
        return done.status == 0

    async def write_exit(self, file: str) -> None:
        """What a killed conmon can write no more: without that podman takes its session for a running one for ever."""
        enter = ("podman", "unshare") if os.getuid() else ()
        await self.tools.call(*enter, "sh", "-c", '[ -e "$1" ] || printf 137 >"$1"', "sh", file)

    async def image(self, image: str) -> dict[str, Any] | None:
        """What the engine knows of an image that is here; None: it must be pulled first."""
        done = await self.call("image", "inspect", image, check=False)
        if done.status != 0:
            return None
        return dict(from_json(done.out)[0])

    async def images(self) -> dict[str, str]:
        """Ids of the images that are here, by each of their names."""
        lines = (
            await self.call("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}")
        ).out.splitlines()
        found = dict(line.split() for line in lines if " " in line)
        return {name: id.removeprefix("sha256:") for name, id in found.items() if "<none>" not in name}


def entrypoint(image: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple((image.get("Config") or {}).get("Entrypoint") or ())


def only_ours(container: Container | None, owner: str) -> bool:
    """Was it made by a daemon with this runtime directory?"""
    return container is not None and container.labels.get(LABEL_OWNER) == owner


def _container(raw: Mapping[str, Any]) -> Container:
    state, config = raw.get("State") or {}, raw.get("Config") or {}
    published: Mapping[str, Sequence[Mapping[str, str]] | None] = (
        (raw.get("NetworkSettings") or {}).get("Ports") or (raw.get("HostConfig") or {}).get("PortBindings") or {}
    )
    return Container(
        id=str(raw["Id"]),
        name=str(raw.get("Name", "")).removeprefix("/"),  # docker writes a slash
        running=bool(state.get("Running")),
        status=str(state.get("Status", "")),
        pid=int(state.get("Pid") or 0),
        exit_code=int(state.get("ExitCode") or 0),
        oom_killed=bool(state.get("OOMKilled")),
        created=str(raw.get("Created", "")),
        image=str(raw.get("ImageName") or config.get("Image") or ""),
        image_id=str(raw.get("Image", "")).removeprefix("sha256:"),
        exec_ids=tuple(raw.get("ExecIDs") or ()),
        labels=dict(config.get("Labels") or {}),
        ports=tuple(
            (binding.get("HostIp") or "0.0.0.0", int(binding["HostPort"]))
            for port, bindings in published.items()
            if not port.endswith(("/udp", "/sctp"))
            for binding in bindings or ()
            if binding.get("HostPort")
        ),
    )


class MaintenanceLocks:
    """A lock for each container: starts share it, and replacing the container takes it exclusively.

    It is held shortly: by a start until its process has appeared, by a replacement while containers are renamed and
    created. No instance may be stopped under the exclusive lock: one that waits for the shared lock could not react.
    """

    def __init__(self) -> None:
        self._inside: dict[str, int] = {}
        self._closed: set[str] = set()
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def shared(self, name: str) -> AsyncIterator[None]:
        """Wait until nobody has it exclusively; nobody gets it exclusively before the block ends."""
        await self._until(lambda: name not in self._closed)
        self._inside[name] = self._inside.get(name, 0) + 1
        try:
            yield
        finally:
            self._inside[name] -= 1
            self._tell()

    @asynccontextmanager
    async def exclusive(self, name: str) -> AsyncIterator[None]:
        """Keep others from taking it, wait until those who share it have released it, and hold it for the block."""
        await self._until(lambda: name not in self._closed)
        self._closed.add(name)
        try:
            await self._until(lambda: not self._inside.get(name))
            yield
        finally:
            self._closed.discard(name)
            self._tell()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


COLUMNS: Final = 160  # of the terminal that podman sees: wide enough for its bars and their numbers
_ESCAPE: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BLOB: Final = re.compile(r"blob (?:sha256:)?([0-9a-f]{8,12})")
_AMOUNT: Final = re.compile(r"([\d.]+) ?([KMGT]?)i?B / ([\d.]+) ?([KMGT]?)i?B")
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
LINES: Final = 12  # kept for an error


class Pulled(Struct, frozen=True):
    """How far it is: bytes of all layers that have begun, and what podman said last."""

    done: int
    total: int
    line: str


class PullScreen:
    """Reads what podman writes to its terminal."""

    def __init__(self) -> None:
        self._rest = ""
        self._layers: dict[str, tuple[int, int]] = {}
        self.lines: list[str] = []  # other than bars, the newest last

    def feed(self, data: bytes) -> None:
        *whole, self._rest = re.split(r"[\r\n]+", self._rest + data.decode(errors="replace"))
        for text in whole:
            self._take(_ESCAPE.sub("", text).strip())

    def end(self) -> None:
        """The last line may have no end."""
        self.feed(b"\n")

    def _take(self, line: str) -> None:
        layer = _BLOB.search(line)
        amount = _AMOUNT.search(line)
        if layer and amount:
            done, unit, total, of = amount.groups()
            self._layers[layer[1]] = (_bytes(done, unit), _bytes(total, of))
        elif layer and layer[1] in self._layers:  # "done", or "skipped: already exists"
            total_bytes = self._layers[layer[1]][1]
            self._layers[layer[1]] = (total_bytes, total_bytes)
        elif line and not layer and (not self.lines or self.lines[-1] != line):
            self.lines = [*self.lines, line][-LINES:]

    @property
    def state(self) -> Pulled:
        done, total = (sum(amounts[i] for amounts in self._layers.values()) for i in (0, 1))
        return Pulled(done, total, self.lines[-1] if self.lines else "")


def progress_lines(on_output: Callable[[bytes], None], clock: Clock) -> Callable[[Pulled], None]:
    """For `pull`: how far it is, as a line of output a second."""
    shown = clock.monotonic()

    def show(pulled: Pulled) -> None:
        nonlocal shown
        if clock.monotonic() - shown >= 1.0:
            shown = clock.monotonic()
            far = f"{human_size(pulled.done)} of {human_size(pulled.total)}" if pulled.total else pulled.line
            on_output(f"pulling: {far}\n".encode())

    return show


def _bytes(number: str, unit: str) -> int:
    try:
        return int(float(number) * _UNITS[unit])
    except ValueError:
        return 0  # "1.2.3" is no number, and no reason to fail a pull


async def pull(engine: ContainerEngine, image: str, show: Callable[[Pulled], None]) -> None:
    """Have the newest image of that name. HomeError with podman's last word. Killed when cancelled."""
    loop, screen = asyncio.get_running_loop(), PullScreen()
    ours, its = os.openpty()

    def read() -> None:
        while True:
            try:
                data = os.read(ours, 4096)
            except BlockingIOError:
                return
            except OSError:  # nobody has the other end any more
                loop.remove_reader(ours)
                return
            screen.feed(data)
            show(screen.state)

    try:
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", 50, COLUMNS, 0, 0))
        os.set_blocking(ours, False)
        loop.add_reader(ours, read)
        done = await engine.call("pull", image, within=PULL_PATIENCE, check=False, output=its)
        read()
    finally:
        loop.remove_reader(ours)
        os.close(ours)
        os.close(its)
    screen.end()
    if done.status != 0:
        why = screen.lines[-1].removeprefix("Error: ") if screen.lines else f"podman ended with status {done.status}"
        raise HomeError(f"cannot pull {image}: {why}")
