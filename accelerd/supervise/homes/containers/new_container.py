"""The homes "podman" and "docker": a container of its own for every start of a model, made from an image.

The container is named after the model and labelled with its tag; a container without that label is never
touched. It runs in the host's network, so that a unix socket or a port on loopback is the same inside and out.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import signal
import stat
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

from accelerd.base import names
from accelerd.base.ports import Clock, Roots
from accelerd.base.proc import living, pids, read_file
from accelerd.config.model import ModelSpec
from accelerd.engines.base import ContainerProgram
from accelerd.supervise.homes.containers import images
from accelerd.supervise.homes.containers.commands import ENV_CLI_PROCESS, CommandResult, last_line
from accelerd.supervise.homes.containers.container_home import (
    ContainerExit,
    ContainerHome,
    ContainerMainProcess,
    ContainerStart,
    close,
    ending_of,
)
from accelerd.supervise.homes.containers.handoff import as_env_file, inner_environment
from accelerd.supervise.homes.containers.podman_docker import (
    LABEL_INSTANCE,
    LABEL_OWNER,
    Container,
    ContainerEngine,
    entrypoint,
    only_ours,
    progress_lines,
    pull,
)
from accelerd.supervise.homes.containers.process_tree import children
from accelerd.supervise.homes.home import (
    HomeError,
    InstanceRecord,
    LaunchRequest,
    NoProgram,
    OnExit,
    OnOutput,
    short_hash,
)
from accelerd.supervise.process.output import OutputReader
from accelerd.supervise.process.processes import InstanceTag, Process, ProcessTable, hold

log = logging.getLogger(__name__)

APPEAR_PATIENCE: Final = 20.0  # s from the container to the program in it
POLL: Final = 0.02  # s
LINKS: Final = 8  # in a row
NAME_LENGTH: Final = 100  # of a container, at most
INITS: Final = ("podman-init", "docker-init", "catatonit", "tini", "dumb-init")
FAILED: Final = 125  # the engine itself failed; 126 and 127: the program could not be executed


class RunHome(ContainerHome):
    """Containers outlive the daemon; `survives` says whether the next one may take them over."""

    def __init__(
        self, engine: ContainerEngine, roots: Roots, clock: Clock, table: ProcessTable, *, survives: bool
    ) -> None:
        super().__init__(roots, clock, engine.tools, [engine], survives=survives)
        self.kind = engine.name
        self._engine = engine
        self._table = table
        self._caches = roots.cache / "containers"

    def place(self, spec: ModelSpec, tag: InstanceTag) -> str:
        return container_name(spec.name)

    async def program_place(self, spec: ModelSpec) -> RunHome:
        return self

    async def look(self, spec: ModelSpec, program: str, files: Sequence[str]) -> ContainerProgram:
        """The program of the image; the model's files will be mounted where they are. HomeError."""
        image = spec.image or ""
        known = await self._engine.image(image)
        if known is None:
            raise HomeError(f"{image} is not here yet: it is pulled when the model is loaded, or by: {self.kind} pull")
        own = _server(spec, entrypoint(known))
        name = own[0] if own else program
        return ContainerProgram(name, f"{known.get('Id', '')} {name}", dict(zip(files, files, strict=True)),
                      images.settings(image), f"image {image}")  # fmt: skip

    async def ask(self, spec: ModelSpec, *argv: str, within: float = 120.0) -> CommandResult:
        """Run a short command in a container of the image, such as `llama-server --help`. HomeError."""
        image = spec.image or ""
        tag = InstanceTag(f"ask-{secrets.token_hex(8)}", str(self._roots.runtime))
        name = container_name(tag.instance)
        labels = (f"--label={LABEL_INSTANCE}={tag.instance}", f"--label={LABEL_OWNER}={tag.owner}")
        marks = (f"--name={name}", *labels, *(f"--env={key}={value}" for key, value in tag.environment().items()))
        _, command = await self._program(spec, argv)
        mounts = ("--security-opt=label=disable", *(f"--volume={mount}" for mount in _own_mounts(spec).values()))
        flags = ("--rm", "--network=none", *marks, *images.flags(image, self.kind, self._roots.dev), *mounts)
        try:
            return await self._engine.call("run", *flags, *command, within=within, check=False)
        except BaseException:
            await asyncio.shield(self._engine.remove(name))  # what runs inside goes on without the command
            raise

    # --- the Protocol -------------------------------------------------------------------------------------------

    async def prepare(self, spec: ModelSpec, on_output: OnOutput) -> None:
        """The image is here."""
        image = spec.image or ""
        if await self._engine.image(image) is None:
            on_output(f"pulling {image}\n".encode())
            await pull(self._engine, image, progress_lines(on_output, self._clock))

    async def start(self, launch: LaunchRequest, on_output: OnOutput, on_exit: OnExit) -> ContainerMainProcess:
        spec, engine = launch.spec, self._engine
        start = self._new(launch.tag, container_name(spec.name))
        there = await engine.inspect(start.container)
        if there is not None and not only_ours(there, launch.tag.owner):
            text = f"there is a {self.kind} container {start.container} already that accelerd did not make"
            raise HomeError(f"{text}: rename or remove it")
        env = as_env_file(self._environment(launch))
        said = bytearray()

        def printed(chunk: bytes) -> None:
            said[:] = (said + chunk)[-2000:]
            on_output(chunk)

        reader: OutputReader | None = None
        try:
            reader = OutputReader(start.handoff.prepare(env, life=False), printed)
            with start.handoff.writer() as output:
                if there is not None:
                    await engine.remove(start.container)
                options = [*self._options(launch, start), *await asyncio.to_thread(self._mounts, launch)]
                _, command = await self._program(spec, launch.argv)
                argv = (*self._tools.outside(), self._tools.find(self.kind), "run", *options, *command)
                # podman hands its own output on to the container (passthrough); docker's is fetched with `logs`.
                to = output if self.kind == "podman" else None
                done = await self._tools.call(*argv, output=to, instance=launch.tag.instance)
                if self.kind == "docker":
                    self._follow(start, engine, output)
            if done.status != 0:
                reader.finish()
                why = last_line(said.decode(errors="replace")) or done.why()
                if done.status in (126, 127):
                    raise NoProgram(f"cannot start {launch.argv[0]} in {spec.image}: {why}")
                raise HomeError(f"cannot run {spec.image}: {why}")
            start.handoff.revoke()  # the engine has read it
            return await self._held(start, reader, on_exit)
        except BaseException as error:
            if reader is not None:
                reader.finish()
            await asyncio.shield(self._abandon(start))
            if isinstance(error, OSError):
                raise HomeError(f"cannot hand {spec.name} to {self.kind}: {error.strerror or error}") from error
            raise

    async def adopt(self, record: InstanceRecord, on_output: OnOutput, on_exit: OnExit) -> ContainerMainProcess | None:
        start = self._new(record.tag, record.place)
        await asyncio.to_thread(self._kill_cli_processes, record.tag)
        found = await self._engine.inspect(start.container)
        if found is not None and found.running and found.labels.get(LABEL_INSTANCE) == record.tag.instance:
            reader = self._reader(start, record.model, on_output)
            if self.kind == "docker" and reader is not None:
                with start.handoff.writer() as output:
                    self._follow(start, self._engine, output, "--tail=20")
            return await self._held(start, reader, on_exit)
        await self._abandon(start)
        return None

    async def tidy(self, owner: str, spared: Collection[str]) -> int:
        """Remove the containers that an earlier daemon of this runtime directory left, running or not; how many.
        Those of the instances (InstanceTag.instance) in `spared` stay. HomeError."""
        if not self._tools.has(self.kind):
            return 0
        left = [one for one in await self._engine.containers() if only_ours(one, owner)]
        left = [one for one in left if one.labels.get(LABEL_INSTANCE) not in spared]
        for one in left:
            await self._engine.remove(one.id)
        return len(left)

    # --- beginning ----------------------------------------------------------------------------------------------

    async def _program(self, spec: ModelSpec, argv: Sequence[str]) -> tuple[bool, list[str]]:
        """The end of a `run` command line: the image and its arguments. True: the image's own program is used."""
        image = spec.image or ""
        known = await self._engine.image(image)
        if known and _server(spec, entrypoint(known)):
            return True, [image, *argv[1:]]
        program = spec.binary or argv[0]
        return False, [f"--entrypoint={program}", image, *argv[1:]]

    def _environment(self, launch: LaunchRequest) -> dict[str, str]:
        """Its home is the container's. What drivers compile is kept, in a folder that all these containers share."""
        own = {name for name, _ in launch.spec.env}
        env = inner_environment(launch.spec, launch.env)
        kept = {name: value for name, value in env.items() if name != "HOME" or name in own}
        return kept if "XDG_CACHE_HOME" in own else {**kept, "XDG_CACHE_HOME": str(self._caches)}

    def _options(self, launch: LaunchRequest, start: ContainerStart) -> Iterator[str]:
        spec, podman = launch.spec, self.kind == "podman"
        yield from ("--detach", "--init", "--network=host")
        yield from (f"--name={start.container}", f"--env-file={start.handoff.environment}")
        yield from (f"--label={LABEL_INSTANCE}={launch.tag.instance}", f"--label={LABEL_OWNER}={launch.tag.owner}")
        # Neither --rm nor --restart: how it ended is read from the container, then it is removed.
        if podman:
            yield from ("--replace", "--log-driver=passthrough", "--sdnotify=ignore")
            if os.getuid():
                yield "--userns=keep-id"
        else:
            yield from ("--log-driver=local", "--log-opt=max-size=1m", "--log-opt=max-file=2")
        yield f"--user={os.getuid()}:{os.getgid()}"  # so that its processes can be seen and signalled as any other
        known = tuple(images.flags(spec.image or "", self.kind, self._roots.dev))
        yield from known
        for device in spec.devices:
            yield f"--device={device}"
        if spec.devices and not any(flag.startswith("--group-add") for flag in known):
            yield from groups(self.kind, [Path(device.partition(":")[0]) for device in spec.devices])
        limits = {"memory": spec.memory_max, "memory-reservation": spec.memory_high, "pids-limit": spec.tasks_max}
        yield from (f"--{name}={limit}" for name, limit in limits.items() if limit is not None)
        if spec.cpu_weight is not None:
            yield f"--cpu-shares={min(max(spec.cpu_weight * 1024 // 100, 2), 262144)}"
        if spec.oom_score_adjust:
            yield f"--oom-score-adj={spec.oom_score_adjust}"

    def _mounts(self, launch: LaunchRequest) -> list[str]:
        """The folders of the model's files, of caches and of the socket, at the same place inside. Blocking."""
        found = _own_mounts(launch.spec)
        for file in map(Path, launch.files):
            # A file of the hub's cache is a link to a blob elsewhere, and that may be one, too.
            for folder in {file.parent, *(link.parent for link in _links(file))}:
                found.setdefault(str(folder), f"{folder}:{folder}:ro")
        self._caches.mkdir(mode=0o700, parents=True, exist_ok=True)
        found.setdefault(str(self._caches), f"{self._caches}:{self._caches}")
        for word in launch.argv:
            if word.startswith("/") and word.endswith((".sock", names.KEY_SUFFIX)):
                folder = Path(word).parent
                found.setdefault(str(folder), f"{folder}:{folder}")
        # A label would be written on the user's own files; they keep theirs.
        return ["--security-opt=label=disable", *(f"--volume={mount}" for mount in found.values())]

    async def _held(self, start: ContainerStart, reader: OutputReader | None, on_exit: OnExit) -> ContainerMainProcess:
        process, above = await self._appears(start)
        init = hold(self._roots.proc, above) if above is not None else None
        pidfd = hold(self._roots.proc, process) if process is not None else None

        async def signal_by_engine(number: int) -> None:
            await self._engine.kill(start.container, number)

        return ContainerMainProcess(
            process.pid if process is not None else 0, pidfd, on_exit=on_exit, finish=lambda: self._finish(start),
            close=lambda: close(start, kill=True), reader=reader, signal_by_engine=signal_by_engine,
            oom=self._oom_kills(process.pid) if process is not None else None, init=init,
        )  # fmt: skip

    async def _appears(self, start: ContainerStart) -> tuple[Process | None, Process | None]:
        """The program's own process, and the container's init above it; None: it has ended already. HomeError."""
        deadline = self._clock.monotonic() + APPEAR_PATIENCE
        while True:
            found = await self._engine.inspect(start.container)
            if found is None or not found.running:
                return None, None
            process, init = await asyncio.to_thread(self._behind_init, found)
            if process is not None:
                return process, init
            if self._clock.monotonic() > deadline:
                raise HomeError(f"container {start.container} runs, but its program does not begin")
            await asyncio.sleep(POLL)

    def _behind_init(self, container: Container) -> tuple[Process | None, Process | None]:
        stat = living(self._roots.proc, container.pid) if container.pid else None
        if stat is None or stat.name not in INITS:
            return (Process.of(stat) if stat is not None else None), None
        return next(iter(children(self._roots.proc, container.pid)), None), Process.of(stat)

    # --- the end ------------------------------------------------------------------------------------------------

    async def _finish(self, start: ContainerStart) -> ContainerExit:
        """The program has ended: read how, take the rest of its output, remove the container."""
        deadline = self._clock.monotonic() + 2.0
        found = await self._engine.inspect(start.container)
        while found is not None and found.running and self._clock.monotonic() < deadline:
            await asyncio.sleep(POLL)
            found = await self._engine.inspect(start.container)
        if start.cli is not None:
            await start.cli.end(1.0)
        await self._engine.remove(start.container)
        await asyncio.to_thread(start.handoff.remove)
        return ending_of(found)

    async def _abandon(self, start: ContainerStart) -> None:
        """Nothing came of it: nothing of it stays."""
        try:
            found = await self._engine.inspect(start.container)
            if found is not None and found.labels.get(LABEL_INSTANCE) == start.tag.instance:
                await self._engine.remove(start.container)
        except HomeError as error:
            log.error("container %s may be left: %s", start.container, error)
        if start.cli is not None:
            await start.cli.end()
        await asyncio.to_thread(start.handoff.remove)

    def _kill_cli_processes(self, tag: InstanceTag) -> None:
        """A `run` of a daemon that was killed in the middle of it: it must not make a container behind our back."""
        wanted = f"{ENV_CLI_PROCESS}={tag.instance}".encode()
        for pid in pids(self._roots.proc):
            carries = wanted in read_file(self._roots.proc, pid, "environ").split(b"\0")
            stat = living(self._roots.proc, pid) if carries else None
            # conmon inherits it too, and is what keeps a living container's record
            if stat is not None and stat.name in (self.kind, "systemd-run"):
                self._table.signal(Process.of(stat), signal.SIGKILL)


def _server(spec: ModelSpec, own: tuple[str, ...]) -> tuple[str, ...]:
    """The image's own program, when it is a server: it needs only arguments and may not even be in its PATH."""
    return own if spec.binary is None and own and not own[0].endswith(("sh", "entrypoint.sh", "tini", "env")) else ()


def container_name(model: str) -> str:
    """The name of a model's container: what podman and docker allow, a person recognises and no other model has."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", model)[:NAME_LENGTH]
    return f"accelerd-{plain}" if plain == model else f"accelerd-{plain}-{short_hash(model)}"


def _own_mounts(spec: ModelSpec) -> dict[str, str]:
    """The `mounts` of a model's settings as the engine wants them, by their place inside."""
    found: dict[str, str] = {}
    for mount in spec.mounts:
        source, _, rest = mount.partition(":")
        target, _, mode = rest.partition(":")
        found[target or source] = f"{source}:{target or source}" + (f":{mode}" if mode else "")
    return found


def _links(file: Path) -> Iterator[Path]:
    """What a file is a link to, step by step, to the file itself."""
    for _ in range(LINKS):
        if not file.is_symlink():
            return
        file = Path(os.path.normpath(file.parent / os.readlink(file)))
        yield file


def groups(kind: str, devices: Sequence[Path]) -> list[str]:
    """How a container may open device nodes that this user may open through a group (video, render)."""
    if kind == "podman":
        return ["--group-add=keep-groups"]  # of crun: the user's own groups, which have no name inside
    ids = set()
    for device in devices:
        for node in [device, *device.iterdir()] if device.is_dir() else [device]:
            try:
                status = node.stat()
            except OSError:
                continue  # a missing device: the engine's own message is better
            if stat.S_ISCHR(status.st_mode) and status.st_gid:
                ids.add(status.st_gid)
    return [f"--group-add={number}" for number in sorted(ids)]
