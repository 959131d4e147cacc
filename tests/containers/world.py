"""What a test of container homes works with: podman, a shared toolbox, orders for fake servers, what is left of them.

A `Life` is the smallest supervisor: it starts, stops as an instance does (SIGTERM, grace, SIGKILL, sweep by mark,
release), and then `gone` looks for anything that should not be there.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerd.base.ports import Roots, SystemClock
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Endpoint
from accelerd.engines.http import HttpError, request
from accelerd.supervise.homes.containers.commands import CommandRunner
from accelerd.supervise.homes.containers.container_home import ContainerMainProcess
from accelerd.supervise.homes.containers.toolbox import ToolboxHome
from accelerd.supervise.homes.home import Home, InstanceRecord, LaunchRequest
from accelerd.supervise.process.processes import InstanceTag, ProcessTable
from tests.system.containers import IMAGE
from tests.system.systemd_user import REPO

PATIENCE = 20.0  # s; the machine may be busy


class World:
    """One for all tests: it has one toolbox that is never stopped, and what each test makes for itself."""

    image = IMAGE

    def __init__(self) -> None:
        self.home = Path(os.environ["HOME"])
        runtime = Path(os.environ["XDG_RUNTIME_DIR"]) / "accelerd"
        self.roots = Roots(self.home / "c.toml", runtime, self.home / "state", self.home / "cache", home=self.home)
        self.fakes = self.home / "fakes"  # /home is the same in a toolbox; the checkout may not be
        shutil.copytree(REPO / "tests/fakes", self.fakes, ignore=shutil.ignore_patterns("__pycache__", "test_*"))
        self.table = ProcessTable()
        self.tools = CommandRunner()
        self._numbers = itertools.count(1)
        self.toolbox = self.new_toolbox()

    def close(self) -> None:
        self.podman("rm", "--all", "--force", "--time", "0", check=False)

    def podman(self, *args: str, check: bool = True) -> str:
        done = subprocess.run(["podman", *args], capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, (args, done.stderr)
        return done.stdout.strip()

    def name(self, prefix: str) -> str:
        """Of a container that no other test has."""
        return f"{prefix}{next(self._numbers)}"

    def inspect(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self.podman("container", "inspect", name))[0])

    def new_toolbox(self, *, started: bool = True) -> str:
        name = self.name("tb")
        argv = ["toolbox", "create", "--assumeyes", "--image", self.image, "--container", name]
        subprocess.run(argv, check=True, capture_output=True)
        if started:
            subprocess.run([*self.tools.outside(), "podman", "start", name], check=True, capture_output=True)
        return name

    @contextmanager
    def at_login(self, script: str) -> Iterator[None]:
        """What login shells in the shared toolbox run first. (The home directory there is the user's real one.)"""
        path = "/etc/profile.d/of-a-test.sh"
        write = ["podman", "exec", "--interactive", "--user", "root", self.toolbox, "tee", path]
        subprocess.run(write, input=script, text=True, check=True, capture_output=True)
        try:
            yield
        finally:
            self.podman("exec", "--user", "root", self.toolbox, "rm", path)

    def toolbox_home(self, *, survives: bool = True) -> ToolboxHome:
        return ToolboxHome(self.roots, SystemClock(), self.table, self.tools, survives=survives)

    def launch(self, mode: str = "", argv: tuple[str, ...] = (), **settings: Any) -> LaunchRequest:
        """A fake server, listening on a socket of its own; or another program."""
        tag = InstanceTag(f"{next(self._numbers)}-{secrets.token_hex(4)}", str(self.roots.runtime))
        sock = self.roots.instances / f"{tag.instance}.sock"
        argv = argv or ("python3", "-S", "-E", str(self.fakes / "fake_server.py"), "--host", str(sock))
        env = {"FAKE_MODE": mode, "LLAMA_API_KEY": f"secret-{tag.instance}", "PATH": "/nowhere", **tag.environment()}
        env |= dict(settings.get("env", ()))
        settings.setdefault("container", self.toolbox)
        spec = ModelSpec(f"m{tag.instance}", **settings)
        files = tuple(filter(None, (spec.path, spec.mmproj, spec.draft_model, spec.chat_template_file)))
        return LaunchRequest(spec, argv, env, self.home, tag, files=files)


def read(path: str) -> str:
    """A file of /proc, which never keeps anybody waiting."""
    return Path(path).read_text()


class Life:
    """One instance, from start to proof."""

    def __init__(self, world: World, home: Home, launch: LaunchRequest) -> None:
        self.world = world
        self.home = home
        self.launch = launch
        self.output = bytearray()
        self.ended = asyncio.Event()

    @property
    def record(self) -> InstanceRecord:
        tag, spec = self.launch.tag, self.launch.spec
        place = self.home.place(spec, tag)
        return InstanceRecord(spec.name, self.home.kind, "", tag, place, str(self.socket), None, "")

    @property
    def socket(self) -> Path:
        return self.world.roots.instances / f"{self.launch.tag.instance}.sock"

    async def start(self) -> Life:
        self.main: Any = await self.home.start(self.launch, self.output.extend, self.ended.set)
        return self

    async def adopt(self) -> ContainerMainProcess | None:
        found: Any = await self.home.adopt(self.record, self.output.extend, self.ended.set)
        self.main = found
        return found

    async def ready(self) -> None:
        """Answers at its socket."""

        async def ok() -> bool:
            try:
                return (await request(Endpoint(unix=str(self.socket)), "/health", within=2.0, most=0))[0] == 200
            except (HttpError, OSError):
                return False

        async with asyncio.timeout(PATIENCE):
            while not await ok():
                assert not self.ended.is_set(), self.text
                await asyncio.sleep(0.02)

    async def daemon_dies(self) -> None:
        """Let go of it as a killed daemon does: its child `toolbox run` goes too."""
        children = find("toolbox", "run", self.launch.tag.instance)  # one may end by itself as soon as it is let go
        self.main.let_go()
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(os.waitpid, pid, 0)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace")

    def members(self) -> list[int]:
        return [process.pid for process in self.world.table.members(self.launch.tag, None)]

    async def stop(self, grace: float = 5.0) -> int | None:
        """End it as an instance does; how it ended."""
        self.main.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.main.exited.wait(), grace)
        except TimeoutError:
            self.main.kill_group()
        return await self.gone()

    async def gone(self) -> int | None:
        """Sweep, release, and look: no process, no file, no exec session is left of it."""
        async with asyncio.timeout(PATIENCE):
            while (left := self.world.table.members(self.launch.tag, None)) or not self.main.exited.is_set():
                self.main.kill_group()
                for process in left:
                    self.world.table.signal(process, signal.SIGKILL)
                await asyncio.sleep(0.01)
            await self.main.release()
        self.nothing_left()
        assert self.ended.is_set()
        return self.main.status

    def nothing_left(self) -> None:
        assert self.members() == []
        mine = [f.name for f in self.world.roots.instances.glob(f"{self.launch.tag.instance}*")]
        assert [name for name in mine if not name.endswith(".sock")] == []
        if self.home.kind == "toolbox":
            found = self.world.inspect(self.launch.spec.container or "")
            assert found["ExecIDs"] == [], "exec sessions are left"


async def reap() -> None:
    """Take the ends of children that a home has let go of; they are on their way out."""
    while True:
        try:
            await asyncio.to_thread(os.waitpid, -1, 0)
        except ChildProcessError:
            return


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def find(name: str, *words: str) -> list[int]:
    """Live processes of that name with all these words somewhere in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                comm = (entry / "comm").read_text().strip()
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if comm == name and line and all(word in line for word in words):
                found.append(int(entry.name))
    return found
