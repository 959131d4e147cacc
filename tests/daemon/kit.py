"""What the tests of the whole daemon share: a site of fake models with one log, things done side by side, streams.

Everything here looks at the daemon from outside: its two sockets, its processes, its files.
"""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from accelerd.base import names
from tests.harness import FAKE, Daemon, dummy_gguf, eventually, fake_model, streaming

# A retry that a test can wait for, and a client that hears at once that it waits.
QUICK = '[scheduler]\nbackoff_initial = "50ms"\nbackoff_max = "200ms"\nlinger = "50ms"\n'


@dataclass
class Site:
    """A directory of fake models: one model file, one log that all the fakes write."""

    directory: Path
    program: Path = FAKE  # one of another place, where models live that cannot see this checkout

    def __post_init__(self) -> None:
        self.gguf = dummy_gguf(self.directory)
        self.log = self.directory / "fake.log"

    def model(self, name: str, mode: str = "ok", env: dict[str, str] | None = None, **settings: Any) -> str:
        """TOML of a fake model whose server writes to the site's log. One whose memory is given needs just that."""
        alone = {"prompt_cache": 0} if "memory" in settings else {}
        settings = {"binary": str(self.program), **alone, **settings}
        return fake_model(name, self.gguf, mode, {"FAKE_LOG": str(self.log), **(env or {})}, **settings)

    def events(self, kind: str, model: str | None = None) -> list[dict[str, Any]]:
        """What the fakes noted, oldest first: of one kind, and of one model if named."""
        text = self.log.read_text() if self.log.exists() else ""
        records = [json.loads(line) for line in text.splitlines()]
        owner = {r["pid"]: _alias(r["argv"]) for r in records if r["event"] == "spawn"}
        return [r for r in records if r["event"] == kind and model in (None, owner.get(r["pid"]))]

    def spawns(self, model: str | None = None) -> int:
        """How many servers were started."""
        return len(self.events("spawn", model))


def _alias(argv: list[str]) -> str:
    return argv[argv.index("--alias") + 1] if "--alias" in argv else ""  # a fork has none


@contextlib.contextmanager
def side_by_side() -> Iterator[Callable[..., Future[Any]]]:
    """`do(function, *arguments)` runs it in a thread and returns its future; all have ended after the block."""
    with ThreadPoolExecutor(64) as pool:
        yield pool.submit


def alive(pid: int) -> bool:
    """Is there such a process? A zombie, which waits for its parent to look, is none."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def suspend(process: psutil.Process) -> None:
    """SIGSTOP, and wait until it has it: the threads of a busy machine run on for a while."""
    process.suspend()
    threads = Path("/proc") / str(process.pid) / "task"
    eventually(
        lambda: all((task / "stat").read_text().rpartition(") ")[2][0] == "T" for task in threads.iterdir()),
        f"every thread of {process.pid} has stopped",
    )


def marked(daemon: Daemon) -> list[psutil.Process]:
    """Every live process on this machine that carries the daemon's mark, child of it or not."""
    owner = str(Path(daemon.env["XDG_RUNTIME_DIR"]) / names.RUNTIME_DIR)
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(names.ENV_OWNER) == owner and alive(process.pid):
                found.append(process)
    return found


def kill_engine(daemon: Daemon, model: str) -> int:
    """SIGKILL to the model's own process; its pid."""
    pid = int(eventually(lambda: daemon.status(model)["pid"], f"{model} has a process"))
    psutil.Process(pid).kill()
    return pid


def rest_of(response: http.client.HTTPResponse) -> tuple[str, bool]:
    """What is left of a response, and whether it ended as a whole one does."""
    try:
        return response.read().decode(), True
    except http.client.IncompleteRead as error:
        return error.partial.decode(), False


def sse(text: str) -> list[Any]:
    """The events of a stream: JSON, or the bare text of those that are none. Comments are left out."""
    parts = [event.strip("\n") for event in text.split("\n\n")]
    data = [part[6:] for part in parts if part.startswith("data: ")]
    return [json.loads(item) if item.startswith("{") else item for item in data]


def tokens(events: list[Any]) -> list[str]:
    """The text pieces of a chat stream's events."""
    deltas = [e["choices"][0]["delta"].get("content") for e in events if isinstance(e, dict) and e.get("choices")]
    return [delta for delta in deltas if delta]


def whole_stream(daemon: Daemon, model: str, **more: Any) -> tuple[int, list[Any], bool]:
    """Status, events and completeness of one chat stream."""
    with streaming(daemon, model, **more) as response:
        text, complete = rest_of(response)
        return response.status, sse(text), complete


def history(daemon: Daemon, model: str) -> list[str]:
    """The states that the model went through, oldest first."""
    return [step["to"] for step in daemon.control("GET", f"explain?model={model}").json()["history"]]
