"""Starts and stops what is compared: the fake upstream itself (direct), nginx before it, accelerd over it.

Each gets a private directory and a free port on 127.0.0.1. Must never read or touch the user's own accelerd or nginx.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.memory.gguf_maker import string, write

from . import host, usage
from .native import HERE, BenchError

KEY = "bench"  # what the load sends as bearer token, and what the direct upstream asks for
MODELS = {
    "fake": "parallel = 1",
    "fake-parallel": "parallel = 4\nconcurrency = 64",
    "fake-embed": "parallel = 1\nconcurrency = 64\nembeddings = true",
}
START_LIMIT = 30.0  # seconds
STOP_LIMIT = 5.0  # seconds


@dataclass(frozen=True)
class Setup:
    """What all contenders share."""

    scratch: Path
    upstream: Path  # the program
    load: Path  # the program
    cores: host.Cores
    transport: str  # "unix" or "tcp": between a proxy and the upstream
    nginx: Path | None
    llama_swap: Path | None = None
    litellm: Path | None = None
    python: str = sys.executable
    favoured: bool = False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def answers_health(port: int, path: str) -> bool:
    """Does a GET of its health path say 200 right now?"""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2.0) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        return connection.recv(4096).startswith(b"HTTP/1.1 200")
    return False


class Contender:
    """One server under measurement. Subclasses say how to start it."""

    name = ""
    health = "/health"
    starts = 1_000  # how many of its starts are measured at most

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.port = 0
        self.core = setup.cores.contender
        self._process: subprocess.Popen[bytes] | None = None
        self._log = setup.scratch / f"{self.name}.log"

    def command(self, home: Path) -> tuple[list[str], dict[str, str]]:
        """Argv and environment of a fresh start whose files live in `home`."""
        raise NotImplementedError

    def start(self) -> float:
        """Start and wait; seconds from exec to the first 200 of /health."""
        home = self.setup.scratch / f"{self.name}-{time.monotonic_ns():x}"
        home.mkdir(mode=0o700)
        self.port = free_port()
        argv, env = self.command(home)
        with self._log.open("wb") as log, host.on_core(self.core):
            begun = time.monotonic()
            self._process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=home)
        while not answers_health(self.port, self.health):
            if self._process.poll() is not None or time.monotonic() - begun > START_LIMIT:
                self.stop()
                raise BenchError(f"cannot start {self.name}: {' '.join(argv)}\n{self.output()}")
            time.sleep(0.001)
        return time.monotonic() - begun

    def stop(self) -> None:
        """SIGTERM, then SIGKILL; returns when it is gone."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def output(self) -> str:
        """The last lines it wrote, for an error message."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:]) if self._log.exists() else ""

    @property
    def pid(self) -> int:
        if self._process is None:
            raise BenchError(f"{self.name} is not running")
        return self._process.pid

    def processes(self) -> tuple[list[int], list[int]]:
        """(its own processes, the engines below it)."""
        return usage.tree(self.pid, self.setup.upstream)

    def settle(self) -> None:
        """Called when its engines run: put them where the direct upstream is, with the same priority."""
        for pid in self.processes()[1]:
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                host.move(pid, self.setup.cores.upstream)
                if self.setup.favoured:
                    host.favour(pid)


class Direct(Contender):
    """The upstream without anything before it; nginx shares it."""

    name = "direct"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.core = setup.cores.upstream
        self.socket = setup.scratch / "upstream.sock"

    def command(self, home: Path) -> tuple[list[str], dict[str, str]]:
        self.socket.unlink(missing_ok=True)
        argv = [str(self.setup.upstream), "--host", f"127.0.0.1,{self.socket}", "--port", str(self.port)]
        return argv, {"LLAMA_API_KEY": KEY}

    def processes(self) -> tuple[list[int], list[int]]:
        return [], [self.pid]


class Nginx(Contender):
    """One worker, no logs, no buffering, connections to the upstream kept alive."""

    name = "nginx"

    def __init__(self, setup: Setup, upstream: Direct) -> None:
        super().__init__(setup)
        self._upstream = upstream

    def command(self, home: Path) -> tuple[list[str], dict[str, str]]:
        server = (
            f"unix:{self._upstream.socket}" if self.setup.transport == "unix" else f"127.0.0.1:{self._upstream.port}"
        )
        user = "user root root;" if os.geteuid() == 0 else ""  # else root's worker cannot open the socket
        values = {"home": str(home), "port": str(self.port), "server": server, "user": user}
        text = (HERE / "nginx.conf.in").read_text()
        for name, value in values.items():
            text = text.replace(f"@{name}@", value)
        (home / "nginx.conf").write_text(text)
        return [str(self.setup.nginx), "-p", str(home), "-e", "stderr", "-c", str(home / "nginx.conf")], {}


class Accelerd(Contender):
    """The real daemon, with the upstream as the llama-server of three models."""

    name = "accelerd"

    def command(self, home: Path) -> tuple[list[str], dict[str, str]]:
        names = {
            "XDG_RUNTIME_DIR": "run",
            "XDG_CONFIG_HOME": "config",
            "XDG_STATE_HOME": "state",
            "XDG_CACHE_HOME": "cache",
        }
        for name in names.values():
            (home / name).mkdir(mode=0o700)
        header = {"general.architecture": string("llama")}
        write(home / "model.gguf", header, {"token_embd.weight": ((8,), 0)})  # the server does not read it
        config = home / "config" / "accelerd" / "accelerd.toml"
        config.parent.mkdir()
        config.write_text(self._config(home))
        unwanted = {"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "JOURNAL_STREAM", "ACCELERD_CONFIG", "ACCELERD_SOCKET"}
        env = {name: value for name, value in os.environ.items() if name not in unwanted}
        env |= {name: str(home / value) for name, value in names.items()} | {"PYTHONPATH": str(HERE.parents[1])}
        return [self.setup.python, "-m", "accelerd"], env

    def _config(self, home: Path) -> str:
        lines = [
            f'[server]\nlisten = ["127.0.0.1:{self.port}"]',
            f'[engines.llama-server]\ntransport = "{self.setup.transport}"',
        ]
        for name, own in MODELS.items():
            lines.append(
                f'[models.{name}]\npath = "{home}/model.gguf"\nbinary = "{self.setup.upstream}"\nmemory = "1MiB"\n{own}'
            )
        return "\n\n".join(lines) + "\n"


class LlamaSwap(Contender):
    """The upstream as the server of its models, over TCP: it knows nothing else."""

    name = "llama-swap"

    def command(self, home: Path) -> tuple[list[str], dict[str, str]]:
        lines = ["healthCheckTimeout: 15", "logLevel: error", "models:"]
        for name in MODELS:
            lines.append(f'  {name}:\n    cmd: "{self.setup.upstream} --host 127.0.0.1 --port ${{PORT}}"')
            lines.append("    concurrencyLimit: 64")  # its own is 10
        # All of them stay loaded, as they do in accelerd.
        lines.append(f"groups:\n  all:\n    swap: false\n    exclusive: false\n    members: [{', '.join(MODELS)}]")
        config = home / "config.yaml"
        config.write_text("\n".join(lines) + "\n")
        argv = [str(self.setup.llama_swap), "--config", str(config), "--listen", f"127.0.0.1:{self.port}"]
        return argv, {**os.environ, "LLAMA_API_KEY": KEY}


class LiteLlm(Contender):
    """The proxy with one worker, without a database; it shares the direct upstream, over TCP."""

    name = "litellm"
    health = "/health/liveliness"
    starts = 2  # of some seconds each

    def __init__(self, setup: Setup, upstream: Direct) -> None:
        super().__init__(setup)
        self._upstream = upstream

    def command(self, home: Path) -> tuple[list[str], dict[str, str]]:
        lines = ["model_list:"]
        for name in MODELS:
            lines += [
                f"  - model_name: {name}",
                "    litellm_params:",
                f"      model: openai/{name}",
                f"      api_base: http://127.0.0.1:{self._upstream.port}/v1",
                f"      api_key: {KEY}",
            ]
        config = home / "config.yaml"
        config.write_text("\n".join(lines) + "\n")
        argv = [str(self.setup.litellm), "--config", str(config), "--host", "127.0.0.1", "--port", str(self.port)]
        quiet = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                 "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true", "HOME": str(home)}  # fmt: skip
        return argv, {**os.environ, **quiet}
