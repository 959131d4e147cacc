"""A supervisor whose models live in Lemonade Servers: stand-ins by default, a real lemond where ACCELERD_TEST_LEMOND
names one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from accelerd.base.exits import Cause, Exit
from accelerd.base.ports import Roots, SystemClock
from accelerd.config.model import LemonadeSettings, LlamaServerSettings, ModelSpec
from accelerd.engines.lemonade import Lemonade
from accelerd.engines.llama_server.engine import LlamaServer
from accelerd.supervise.homes.child_home import ChildHome
from accelerd.supervise.homes.choice import HomeChoice
from accelerd.supervise.homes.home import Home
from accelerd.supervise.homes.lemonade.home import LemonadeHome, OwnServer
from accelerd.supervise.supervisor import ProcessSupervisor
from tests.harness import eventually
from tests.ports import free_port
from tests.supervise.bench import PATIENCE, Heard

STANDINS = Path(__file__).parent / "standins"
REAL = os.environ.get("ACCELERD_TEST_LEMOND")
QWEN, GEMMA, EMBED = "Qwen3-4B-GGUF", "Gemma-3-4b-it-GGUF", "nomic-embed-text-v2-moe-GGUF"


class Standin:
    """What the stand-ins of one test are told, in its home."""

    def __init__(self, home: Path, *programs: str) -> None:
        """`programs`: those that are in its PATH."""
        self.home = home
        self.log = home / "lemonade.log"
        self.bin = home / "bin"
        self.bin.mkdir(parents=True, exist_ok=True)
        for program in (*programs, "llama-server"):
            (self.bin / program).symlink_to(STANDINS / program)
        self._said: dict[str, Any] = {}
        self.say()

    def say(self, **settings: Any) -> None:
        self._said |= settings
        temporary = self.home / ".lemonade-standin.json.new"
        temporary.write_text(json.dumps({"log": str(self.log), "pace": 0, **self._said}))
        temporary.replace(self.home / ".lemonade-standin.json")

    @property
    def path(self) -> str:
        # The interpreter's folder comes first: the stand-ins begin with "env python3".
        return f"{self.bin}:{Path(sys.executable).parent}:/usr/bin:/bin"

    def requests(self, path: str) -> list[dict[str, Any]]:
        """What it was asked there, in order; "start": how it was started."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [one for one in map(json.loads, lines) if one["path"] == path]


class LemonadeBench:
    """`async with bench:` makes the supervisor and, at the end, closes it."""

    def __init__(self, tmp_path: Path, runtime: Path, programs: tuple[str, ...] = ("lemond",)) -> None:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        self.roots = Roots(tmp_path / "c.toml", runtime, tmp_path / "state", tmp_path / "cache", home=home)
        self.standin = Standin(home, *programs)
        self.settings = LemonadeSettings()
        self.llama_server = "llama-server"
        self.idle = 60.0
        self.extra: dict[str, Home] = {}
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> LemonadeBench:
        clock = SystemClock()
        child = ChildHome(proc=self.roots.proc, sys=self.roots.sys)
        homes: dict[str, Home] = {"child": child, **self.extra}
        self.home = LemonadeHome(self.roots, clock, dict(homes), idle=self.idle)
        homes["lemonade"] = self.home
        env = {"PATH": self.standin.path, "HOME": str(self.roots.home), "XDG_RUNTIME_DIR": str(self.roots.runtime)}
        llama = LlamaServer(LlamaServerSettings(binary=self.llama_server), environ=env)
        self.engine = Lemonade(
            self.settings, self.home.catalogue, environ=env, llama=lambda: llama.features(ModelSpec("any"))
        )
        self.heard = Heard()
        self.supervisor = ProcessSupervisor(
            self.heard, {"lemonade": self.engine}, self.roots, clock, homes=homes, choose=HomeChoice(homes, None)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert await self.supervisor.close(10)

    def spec(self, model: str = QWEN, **settings: Any) -> ModelSpec:
        spec = ModelSpec(settings.pop("name", model), engine="lemonade", model=model, context=4096)
        return replace(spec, **settings)

    def start(self, model: str = QWEN, **settings: Any) -> int:
        """Begin to load one of Lemonade's models; the number of the instance."""
        number = next(self._numbers)
        self.supervisor.start(number, self.spec(model, **settings))
        return number

    async def ready(self, *numbers: int) -> None:
        for number in numbers:
            await self.heard.wait("ready", number)

    async def loaded(self, *models: str, **settings: Any) -> list[int]:
        """Load these, one after the other."""
        numbers = []
        for model in models:
            numbers.append(self.start(model, **settings))
            await self.ready(numbers[-1])
        return numbers

    async def gone(self, number: int) -> Exit:
        exit = await self.heard.wait("gone", number)
        assert isinstance(exit, Exit)
        return exit

    async def stopped(self, number: int) -> Exit:
        self.supervisor.stop(number, Cause.STOPPED)
        return await self.gone(number)

    def pid(self, number: int) -> int:
        facts = self.supervisor.facts(number)
        assert facts is not None
        assert facts.pid
        return facts.pid

    def endpoint(self, number: int) -> int:
        """The port that its requests go to."""
        facts = self.supervisor.facts(number)
        assert facts is not None
        assert facts.plan is not None
        assert facts.plan.endpoint.port is not None
        return facts.plan.endpoint.port

    @property
    def own(self) -> OwnServer:
        """The server that accelerd runs."""
        server = self.home._servers[None]
        assert isinstance(server, OwnServer)
        return server

    async def until(self, condition: Any) -> None:
        """For what happens outside this process, where nothing can be awaited."""
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


class Foreign:
    """A Lemonade Server of somebody else, that runs already."""

    def __init__(
        self, standin: Standin, *, key: str = "", max_loaded: int = 1, program: str = "", **settings: Any
    ) -> None:
        """`program`: another than the stand-in; `settings`: of its config.json."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.key = key
        cache = standin.home / "foreign"
        cache.mkdir()
        (cache / "config.json").write_text(json.dumps({"max_loaded_models": max_loaded, **settings}))
        registered = standin.home / ".config/lemonade/user_models.json"
        if registered.exists():
            shutil.copy(registered, cache)
        env = {"PATH": standin.path, "HOME": str(standin.home), "XDG_RUNTIME_DIR": str(cache)}
        env |= {"LEMONADE_API_KEY": key} if key else {}
        command = [program] if program else [sys.executable, str(STANDINS / "lemond")]
        argv = [*command, str(cache), "--port", str(self.port)]
        self.process = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        eventually(self._answers, "somebody's Lemonade Server")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.ask("/api/v1/health"))
        return False

    def ask(self, path: str, body: Any = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=PATIENCE) as answer:
            return json.loads(answer.read())

    def loaded(self) -> list[str]:
        return [one["model_name"] for one in self.ask("/api/v1/health")["all_models_loaded"]]

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)


@contextlib.contextmanager
def foreign(standin: Standin, **settings: Any) -> Iterator[Foreign]:
    """A server of somebody else for a test."""
    server = Foreign(standin, **settings)
    try:
        yield server
    finally:
        server.close()


def children(pid: int) -> set[int]:
    return {one.pid for one in psutil.Process(pid).children(recursive=True)}


def has_flm() -> bool:
    return shutil.which("flm", path=str(STANDINS)) is not None
