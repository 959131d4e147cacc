"""What the tests with a real systemd --user use: a driver (driver.py) as another process, and what it left behind."""

from __future__ import annotations

import json
import os
import secrets
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from accelerd.base import names
from tests.system.systemd_user import UserManager, wait_until

PATIENCE = 20.0  # s


class Daemon:
    """One driver. Every order is answered; events are kept until somebody waits for them."""

    def __init__(self, manager: UserManager, *arguments: str) -> None:
        argv = [sys.executable, "-m", "tests.supervise.driver", *arguments]
        self._process: subprocess.Popen[str] = manager.popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._events: list[dict[str, Any]] = []
        self._unread = b""
        self.units = False  # is there a systemd for models?

    def begin(self) -> Daemon:
        """Wait until it takes orders."""
        self.units = bool(self.wait("up")["units"])
        return self

    def ask(self, do: str, **order: Any) -> Any:
        """Give an order; its reply."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **order}) + "\n")
        self._process.stdin.flush()
        while True:
            told = self._read()
            if "reply" in told:
                return told["reply"]
            self._events.append(told)

    def wait(self, event: str, **wanted: Any) -> dict[str, Any]:
        """The first such event, which is then forgotten. A `gone` of the instance instead of it fails the test."""
        seen = 0
        while True:
            if seen == len(self._events):
                self._events.append(self._read())
            told = self._events[seen]
            if told["event"] == event and all(told[key] == value for key, value in wanted.items()):
                return self._events.pop(seen)
            if told["event"] == "gone" and "n" in wanted and told["n"] == wanted["n"]:
                raise AssertionError(f"waited for {event}, but: {told}")
            seen += 1

    def start(self, n: int, name: str, mode: str = "", **settings: Any) -> int:
        """Start and wait until it is ready; its pid."""
        self.ask("start", n=n, name=name, mode=mode, **settings)
        self.wait("ready", n=n)
        return self.pid(n)

    def pid(self, n: int) -> int:
        """Known a moment after the process runs."""
        deadline = time.monotonic() + PATIENCE
        while (pid := self.ask("facts", n=n)["pid"]) is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return int(pid)

    def stopped(self, n: int) -> dict[str, Any]:
        self.ask("stop", n=n)
        return self.wait("gone", n=n)

    def kill(self) -> None:
        """As a crash."""
        self._process.kill()
        self._process.wait()
        self._close()

    def end(self) -> None:
        """Its standard input ends, and it with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(PATIENCE) == 0
        self._close()

    def _close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
            piece = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            if not piece:
                raise AssertionError("the driver has ended" if ready else "the driver says nothing")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return dict(json.loads(line))


class Units:
    """The user's systemd with the drivers that a test started, and models of names that nobody else has."""

    def __init__(self, manager: UserManager) -> None:
        self.manager = manager
        self.runtime = manager.runtime_dir / names.RUNTIME_DIR
        self._daemons: list[Daemon] = []
        self._tag = secrets.token_hex(3)

    def daemon(self, *arguments: str) -> Daemon:
        daemon = Daemon(self.manager, *arguments)
        self._daemons.append(daemon)  # it is ended also when it does not begin
        return daemon.begin()

    def name(self, name: str = "qwen") -> str:
        return f"{name}-{self._tag}"

    def unit(self, name: str = "qwen") -> str:
        return f"accelerd-{self.name(name)}.service"

    def show(self, unit: str) -> dict[str, str]:
        return self.manager.properties(unit)

    def pids(self) -> list[int]:
        """All processes that carry the mark of this runtime directory."""
        tag = f"{names.ENV_OWNER}={self.runtime}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if tag in path.read_bytes().split(b"\0"):
                    found.append(int(path.parts[2]))
            except OSError:
                continue
        return found

    def files(self, pattern: str = "*") -> list[str]:
        return sorted(path.name for path in (self.runtime / names.INSTANCE_DIR).glob(pattern))

    def noted(self) -> None:
        """Wait until the records say that every instance is ready."""
        records = list((self.runtime / names.INSTANCE_DIR).glob("[0-9]*.json"))
        assert wait_until(lambda: all(json.loads(path.read_text())["phase"] == "ready" for path in records), PATIENCE)

    def loaded(self) -> list[str]:
        """The units of this test that systemd knows."""
        listed = self.manager.systemctl("list-units", "--all", "--plain", "--no-legend", f"accelerd-*{self._tag}*")
        return listed.stdout.splitlines()

    def recorded(self, event: str) -> list[dict[str, Any]]:
        """What the fake servers wrote to FAKE_LOG."""
        log = self.manager.home / "fake.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [record for record in map(json.loads, lines) if record["event"] == event]

    def assert_nothing_left(self) -> None:
        assert self.pids() == []
        assert self.files() == []
        assert wait_until(lambda: self.loaded() == [], 5), self.loaded()

    def errors(self) -> str:
        """What the drivers wrote to their standard error."""
        path = self.manager.home / "driver.err"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        for daemon in self._daemons:
            daemon.kill()
        self.manager.systemctl("kill", "--signal=KILL", f"accelerd-*{self._tag}*", check=False)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.01)
