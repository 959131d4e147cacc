"""A real accelerd as a child process, in directories of its own, on a port of its own, for tests.

`daemons.start(toml)` writes the configuration, waits until it is ready (sd_notify) and returns a Daemon with ways to
talk to it. FAKE is the path of the fake llama-server; `fake_model(...)` writes a model of it as TOML.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.memory.gguf_maker import string, write
from tests.ports import free_port

ROOT = Path(__file__).parents[1]
FAKE = ROOT / "tests" / "fakes" / "fake_server.py"
PATIENCE = 20.0  # s for what should take moments


def eventually(condition: Callable[[], Any], what: str, within: float = PATIENCE) -> Any:
    """Wait until `condition()` is true and return it."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in {within} s: {what}"
        time.sleep(0.01)
    return value


def command_line(process: psutil.Process) -> list[str]:
    """Its words; none if it has ended meanwhile, be its parent told or not."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def fake_model(name: str, path: Path, mode: str = "ok", env: Mapping[str, str] | None = None, **settings: Any) -> str:
    """TOML of a model that the fake server serves. `path` must be a GGUF file: any will do, see `dummy_gguf`."""
    settings = {"binary": str(FAKE), **settings}
    table = f"models.{json.dumps(name, ensure_ascii=False)}"
    lines = [f"[{table}]", f"path = {json.dumps(str(path))}"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    lines += [f"[{table}.env]", f"FAKE_MODE = {json.dumps(mode)}"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in (env or {}).items()]
    return "\n".join(lines) + "\n"


def dummy_gguf(directory: Path) -> Path:
    """The smallest file that is a model by its header, for servers that do not read it."""
    return write(directory / "dummy.gguf", {"general.architecture": string("llama")}, {"token_embd.weight": ((8,), 0)})


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error code of an OpenAI-shaped error."""
        return str(self.json()["error"]["code"])


class ServiceManager:
    """The other end of sd_notify: takes every message at once, as systemd does, and keeps it for the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._lock = threading.Lock()
        self._messages: list[str] = []
        self._closing = False
        self._reader = threading.Thread(target=self._read, name="service manager", daemon=True)
        self._reader.start()

    def take(self) -> list[str]:
        """The assignments that came since the last call."""
        with self._lock:
            self._drain()
            found, self._messages = self._messages, []
        return found

    def close(self) -> None:
        self._closing = True
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes the reader
        self._reader.join()
        self._socket.close()

    def _read(self) -> None:
        while not self._closing:
            select.select([self._socket], [], [])
            with self._lock:
                self._drain()

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._messages += self._socket.recv(65536, socket.MSG_DONTWAIT).decode().split("\n")


@dataclass
class Daemon:
    """One running accelerd."""

    process: subprocess.Popen[bytes]
    port: int
    config: Path
    env: dict[str, str]
    log: Path
    notify: ServiceManager = field(repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def control_socket(self) -> Path:
        return Path(self.env["XDG_RUNTIME_DIR"]) / "accelerd" / "accelerd.sock"

    # --- HTTP ---

    def send(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """One request to the TCP port."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE * 3)
        return exchange(connection, method, path, body, headers or {})

    def control(self, method: str, path: str, body: Any = None) -> Answer:
        """One request to the unix socket; `path` below /accelerd/v1 unless it starts with a slash."""
        target = path if path.startswith("/") else f"/accelerd/v1/{path}"
        return exchange(UnixConnection(self.control_socket), method, target, body, {})

    def chat(self, model: str, **more: Any) -> Answer:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
        return self.send("POST", "/v1/chat/completions", body)

    def status(self, model: str | None = None) -> Any:
        """The whole status, or one model's part of it."""
        whole = self.control("GET", "status").json()
        return whole if model is None else next(m for m in whole["models"] if m["name"] == model)

    def state(self, model: str) -> str:
        return str(self.status(model)["state"])

    def wait_state(self, model: str, *states: str, within: float = PATIENCE) -> Any:
        """Until the model is in one of `states`; its status then."""
        return eventually(
            lambda: (found := self.status(model)) and found["state"] in states and found, f"{model}: {states}", within
        )

    def events(self, path: str) -> list[dict[str, Any]]:
        """All events of a long operation (load, unload)."""
        return [json.loads(line) for line in self.control("POST", path).body.splitlines()]

    # --- the process ---

    def configure(self, text: str) -> None:
        """Write a new configuration, without telling the daemon."""
        self.config.write_text(self.env["TEST_PREAMBLE"] + text)

    def messages(self) -> list[str]:
        """What it told the service manager since the last call, one assignment each."""
        return self.notify.take()

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, within: float = PATIENCE) -> int:
        """SIGTERM, and its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within)


class DaemonFactory:
    """Makes daemons for one test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._daemons: list[Daemon] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> DaemonFactory:
        self._stack.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            for daemon in self._daemons:
                self._end(daemon)
        finally:
            self._stack.close()

    def environment(self, **more: str) -> dict[str, str]:
        """XDG directories of its own. The runtime directory is short: socket paths have room for 107 bytes."""
        runtime = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="acc-"))
        home = self.directory / "home"
        home.mkdir(exist_ok=True)
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            "XDG_RUNTIME_DIR": runtime,
            "XDG_CONFIG_HOME": str(home / ".config"),
            "XDG_STATE_HOME": str(home / ".local/state"),
            "XDG_CACHE_HOME": str(home / ".cache"),
            "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={runtime}/system_bus",  # nobody's: this machine is left alone
            **more,
        }

    def start(
        self,
        toml: str = "",
        *,
        server: str = "",
        port: int | None = None,
        env: Mapping[str, str] | None = None,
        module: str = "accelerd",
        address: str = "127.0.0.1",
        enter: Sequence[str] = (),
    ) -> Daemon:
        """A ready daemon. `server`: more lines of [server]; `toml`: everything else; `module`: another main module;
        `enter`: what its command is begun with."""
        daemon = self.launch(toml, server=server, port=port, env=env, module=module, address=address, enter=enter)
        eventually(lambda: "READY=1" in daemon.messages() or daemon.process.poll() is not None, "ready")
        assert daemon.process.poll() is None, daemon.output()
        return daemon

    def launch(
        self,
        toml: str = "",
        *,
        server: str = "",
        port: int | None = None,
        env: Mapping[str, str] | None = None,
        module: str = "accelerd",
        address: str = "127.0.0.1",
        enter: Sequence[str] = (),
    ) -> Daemon:
        """A daemon that may or may not become ready."""
        port = port or free_port()
        preamble = f'[server]\nlisten = ["{address}:{port}"]\n{server}\n'
        environment = self.environment(**(env or {}), TEST_PREAMBLE=preamble)
        config = Path(environment["XDG_CONFIG_HOME"]) / "accelerd" / "accelerd.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(preamble + toml)
        notify = ServiceManager(Path(environment["XDG_RUNTIME_DIR"]) / "notify")
        log = self.directory / f"accelerd-{port}-{len(self._daemons)}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [*enter, sys.executable, "-m", module],
                env={**environment, "NOTIFY_SOCKET": str(notify.path)},
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                cwd=self.directory,
            )
        daemon = Daemon(process, port, config, environment, log, notify)
        self._daemons.append(daemon)
        return daemon

    def _end(self, daemon: Daemon) -> None:
        children = daemon.children() if daemon.process.poll() is None else []
        try:
            daemon.stop()
        except subprocess.TimeoutExpired:
            daemon.process.kill()
            daemon.process.wait()
            raise
        finally:
            daemon.notify.close()
            print(f"--- accelerd's output ({daemon.log.name}) ---\n{daemon.output()}")  # pytest shows it on failure
            _, alive = psutil.wait_procs(children, timeout=2)
            for child in alive:
                child.kill()
            assert not alive, f"the daemon left processes behind: {alive}"


def exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any, headers: Mapping[str, str]
) -> Answer:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **headers} if data is not None else dict(headers)
    with contextlib.closing(connection):
        connection.request(method, path, data, sent)
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def first_event(response: http.client.HTTPResponse) -> bytes:
    """The first line of a stream that is an event: comments, which tell who waits for a model how far it is, pass."""
    while (line := response.readline()).startswith(b":") or line == b"\n":
        continue
    return line


@contextlib.contextmanager
def streaming(daemon: Daemon, model: str, **more: Any) -> Iterator[http.client.HTTPResponse]:
    """A chat stream that is open while the block runs."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE * 3)
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": True, **more}
    with contextlib.closing(connection):
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        with contextlib.closing(response):
            yield response
