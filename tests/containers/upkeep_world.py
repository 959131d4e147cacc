"""What tests of the upkeep of toolboxes work with: images with a llama-server of ours, models that run, crashes.

An image's llama-server is a script: it knows its version and runs the fake server, or fails to. `Lives` moves real
processes as the scheduler would. A `DeadEngine` is a daemon that dies at one call and does nothing afterwards.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from accelerd.base.errors import AccelError
from accelerd.base.ports import SystemClock
from accelerd.supervise.homes.containers.images import Builds
from accelerd.supervise.homes.containers.maintenance import ToolboxMaintenance
from accelerd.supervise.homes.containers.podman_docker import Container, ContainerEngine
from accelerd.supervise.homes.containers.process_tree import ContainerSessions
from accelerd.supervise.homes.containers.refresh_context import ModelInToolbox, RefreshContext, RefreshRecord
from accelerd.supervise.homes.containers.toolbox import ToolboxHome

from .world import PATIENCE, Life, World

BROKEN = "ggml_vulkan: no device found"  # what a llama-server says that does not start


class Neighbour(Life):
    """A Life in a toolbox where others live: their exec sessions are theirs."""

    def nothing_left(self) -> None:
        assert self.members() == []
        mine = [f.name for f in self.world.roots.instances.iterdir() if f.name.startswith(self.launch.tag.instance)]
        assert [name for name in mine if not name.endswith(".sock")] == []


class Lives:
    """refresh_kit.Models: models of one toolbox, by name, with real processes."""

    def __init__(self, world: World, home: ToolboxHome, toolbox: str, *names: str) -> None:
        self.world = world
        self.home = home
        self.toolbox = toolbox
        self.lives: dict[str, Neighbour | None] = dict.fromkeys(names)
        self.calls: list[tuple[str, str]] = []
        self.hold: dict[str, asyncio.Event] = {}  # a model whose unload waits
        self.failing: dict[str, AccelError] = {}

    def used(self) -> Mapping[str, list[ModelInToolbox]]:
        return {self.toolbox: [self._used(name, life) for name, life in self.lives.items()]}

    def _used(self, name: str, life: Neighbour | None) -> ModelInToolbox:
        return ModelInToolbox(name, "ready" if life else "stopped", life is not None, life.main.pid if life else None)

    async def unload(self, model: str) -> None:
        self.calls.append(("unload", model))
        if model in self.hold:
            await self.hold[model].wait()
        life = self.lives[model]
        if life is not None:
            await life.stop()
            self.lives[model] = None

    async def load(self, model: str) -> None:
        self.calls.append(("load", model))
        if model in self.failing:
            raise self.failing[model]
        launch = self.world.launch(argv=("llama-server",), container=self.toolbox)
        sock = f"{self.world.roots.instances}/{launch.tag.instance}.sock"
        launch = replace(launch, argv=("llama-server", "--host", sock))
        life = await Neighbour(self.world, self.home, launch).start()
        try:
            await life.ready()
        except AssertionError:
            await life.gone()
            tail = life.text.splitlines()
            raise AccelError("model_failed", f"cannot load {model}: it ended", tail=tail) from None
        self.lives[model] = life

    def pid(self, model: str) -> int:
        life = self.lives[model]
        assert life is not None, f"{model} is not loaded"
        return int(life.main.pid)

    async def answers(self, model: str) -> bool:
        life = self.lives[model]
        if life is None:
            return False
        await life.ready()
        return True

    async def end(self) -> None:
        for model, life in self.lives.items():
            if life is not None:
                await life.stop()
                self.lives[model] = None


class Pins:
    """upkeep.Pins, in memory."""

    def __init__(self) -> None:
        self.pins: dict[str, str] = {}
        self.degraded: str | None = None
        self.flushed = 0

    def pin(self, toolbox: str, image: str | None) -> None:
        self.pins.pop(toolbox, None)
        if image is not None:
            self.pins[toolbox] = image

    async def flush(self) -> None:
        self.flushed += 1


class Died(BaseException):
    """The daemon is gone."""


class DeadEngine(ContainerEngine):
    """Dies after, or before, the nth call of one kind: no call does anything from then on."""

    def __init__(self, kit: RefreshContext, verb: str, nth: int = 1, *, before: bool = False) -> None:
        super().__init__("podman", kit.tools)
        self._verb, self._left, self._before = verb, nth, before
        self.dead = False

    async def call(self, *args: str, **options: Any) -> Any:
        return await self._once(args[0], super().call(*args, **options))

    async def start(self, container: str) -> None:
        await self._once("start", super().start(container))

    async def _once(self, verb: str, work: Coroutine[Any, Any, Any]) -> Any:
        mine = verb == self._verb
        self._left -= mine
        now = mine and self._left == 0
        if self.dead or (now and self._before):
            self.dead = True
            work.close()
            raise Died
        done = await work
        if now:
            self.dead = True
            raise Died
        return done


class Upkeep:
    """One toolbox, what runs in it, and its upkeep. `again()` is the next daemon."""

    def __init__(self, world: World, *models: str, image: str, started: bool = True) -> None:
        self.world = world
        self.home = world.toolbox_home()
        self.image = image
        self.name = world.name("care")
        create = ["toolbox", "create", "--assumeyes", "--image", image, "--container", self.name]
        subprocess.run(create, check=True, capture_output=True, timeout=60)
        if started:
            world.podman("start", self.name)
        self.models = Lives(world, self.home, self.name, *models)
        self.pins = Pins()
        self.record = world.roots.state / f"{self.name}.json"
        self.kit = self.new_kit()
        self.upkeep = ToolboxMaintenance(self.kit, self.pins)

    def new_kit(self, engine: ContainerEngine | None = None) -> RefreshContext:
        world = self.world
        engine = engine or ContainerEngine("podman", world.tools)
        return RefreshContext(
            world.tools, engine, Builds(engine, self.home.inside),
            ContainerSessions(world.roots.proc, str(world.roots.runtime)),
            self.home.locks, self.models, RefreshRecord(self.record, world.roots.proc), SystemClock(), patience=1.0,
        )  # fmt: skip

    async def again(self) -> ToolboxMaintenance:
        self.kit = self.new_kit()
        self.upkeep = ToolboxMaintenance(self.kit, self.pins)
        await self.upkeep.begin()
        return self.upkeep

    async def load(self) -> dict[str, int]:
        """All of its models; their pids."""
        for model in self.models.lives:
            await self.models.load(model)
        self.models.calls.clear()
        return {model: self.models.pid(model) for model in self.models.lives}

    async def refresh(self, *, force: bool = False) -> dict[str, Any]:
        return await self.upkeep.refresh(self.name, force=force).task

    async def found(self, name: str = "") -> Container:
        found = await ContainerEngine("podman", self.world.tools).inspect(name or self.name)
        assert found is not None
        return found

    def began(self) -> str:
        """When the toolbox was started; another answer means that it was stopped meanwhile."""
        return str(self.world.inspect(self.name)["State"]["StartedAt"])

    def containers(self) -> list[str]:
        """All whose name begins like the toolbox's."""
        names = self.world.podman("ps", "--all", "--format={{.Names}}").split()
        return sorted(name for name in names if name == self.name or name.startswith(f"{self.name}-"))

    def inside(self, *command: str) -> str:
        done = subprocess.run(
            ["toolbox", "run", "--container", self.name, *command],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout.strip()

    async def __aenter__(self) -> Upkeep:
        await self.upkeep.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.models.end()
        self.record.unlink(missing_ok=True)
        for name in self.containers():
            self.world.podman("rm", "--force", "--time", "0", name)


def image(world: World, version: str | None, tag: str, *, starts: bool = True) -> str:
    """Give `tag` to the image whose llama-server says `version` (None: it has none); its id."""
    made = _made(world, version, starts)
    world.podman("tag", made, tag)
    return made


@cache
def _made(world: World, version: str | None, starts: bool) -> str:
    run = f"exec python3 -S -E {world.fakes}/fake_server.py" if starts else f"echo '{BROKEN}' >&2; exit 3; :"
    script = f'#!/bin/sh\n[ "$1" != --version ] || {{ echo "version: {version}" >&2; exit; }}\n{run} "$@"\n'
    maker = world.name("maker")
    write = "cat >/usr/local/bin/llama-server; chmod 755 /usr/local/bin/llama-server" if version else "true"
    run_it = ["podman", "run", "--interactive", "--name", maker, "--network=none", world.image]
    subprocess.run([*run_it, "sh", "-c", write], input=script, text=True, check=True, capture_output=True, timeout=60)
    made = world.podman("commit", "--quiet", "--change", f"LABEL made={maker}", maker)
    world.podman("rm", maker)
    return made.removeprefix("sha256:")


class Session:
    """A person's shell in a container: `toolbox run` with something that stays."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> Session:
        self.process = subprocess.Popen(
            ["toolbox", "run", "--container", self._name, "sh", "-c", "echo in; read -r _"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "in\n"
        return self

    def leave(self) -> None:
        self.process.communicate("\n", timeout=PATIENCE)

    def lives(self) -> bool:
        return self.process.poll() is None

    def __exit__(self, *_: object) -> None:
        if self.lives():
            self.leave()


def first_name(upkeep: Upkeep) -> str:
    """What the container itself believes that it is called."""
    lines = dict(line.split("=", 1) for line in upkeep.inside("cat", "/run/.containerenv").splitlines() if "=" in line)
    return lines["name"].strip('"')
