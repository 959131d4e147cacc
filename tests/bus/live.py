"""A whole accelerd on a private session bus, and busctl as its client."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any

from accelerd.base import names
from accelerd.bus.paths import model_path
from tests.harness import PATIENCE, Daemon, eventually
from tests.system.fake_services import Bus


@dataclass
class Live:
    """`daemon` has its desk on `bus`."""

    daemon: Daemon
    bus: Bus

    def busctl(self, *arguments: str) -> str:
        """What it prints; it must succeed."""
        done = self._run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def call(self, method: str, *arguments: str, path: str = names.BUS_PATH) -> Any:
        """The first value of the answer. The interface is that of the path."""
        return self._answer("call", names.BUS_NAME, path, interface_of(path), method, *arguments)[0]

    def refusal(self, method: str, *arguments: str, path: str = names.BUS_PATH) -> str:
        """The text of the error."""
        done = self._run("call", names.BUS_NAME, path, interface_of(path), method, *arguments)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def get(self, path: str, name: str) -> Any:
        """A property."""
        return self._answer("get-property", names.BUS_NAME, path, interface_of(path), name)

    def model(self, model: str, name: str) -> Any:
        return self.get(model_path(model), name)

    def is_there(self) -> bool:
        """Is anybody at the name?"""
        return self._run("status", names.BUS_NAME).returncode == 0

    def load(self, model: str) -> str:
        """The path of the job."""
        return str(self.call("LoadModel", "sa{sv}", model, "0"))

    def wait(self, job: str) -> str:
        """Its result."""
        return str(self.call("Wait", path=job))

    def wait_state(self, model: str, state: str) -> None:
        eventually(lambda: self.model(model, "State") == state, f"{model} is {state} on the bus")

    def _answer(self, *arguments: str) -> Any:
        return json.loads(self.busctl("--json=short", *arguments))["data"]

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["busctl", f"--address={self.bus.address}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE * 3, stdin=subprocess.DEVNULL)


def interface_of(path: str) -> str:
    for parent, interface in (
        (names.BUS_MODELS, names.BUS_MODEL),
        (names.BUS_DEVICES, names.BUS_DEVICE),
        (names.BUS_JOBS, names.BUS_JOB),
    ):
        if path.startswith(parent + "/"):
            return interface
    return names.BUS_MANAGER


def environment(bus: Bus) -> dict[str, str]:
    return {names.ENV_SESSION_BUS: bus.address}
