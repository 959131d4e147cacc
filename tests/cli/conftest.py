"""What every test of accelctl has: a fake daemon on a short socket path, and accelctl as a function."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from accelerd.cli import run
from tests.settled import pytest_pyfunc_call, settled  # noqa: F401

from .fake_daemon import FLEET, FakeDaemon, Reply, status


class Stream(io.StringIO):
    """A text stream that may pretend to be a terminal."""

    def __init__(self, text: str = "", *, tty: bool = False) -> None:
        super().__init__(text)
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


@dataclass
class Result:
    status: int
    out: str
    err: str


@dataclass
class Ctl:
    """accelctl with a home directory of its own."""

    home: Path
    socket: Path
    env: dict[str, str] = field(default_factory=dict)

    def __call__(self, *argv: str, stdin: str = "", tty: bool = False, **env: str) -> Result:
        out, err = Stream(tty=tty), Stream(tty=tty)
        code = run(argv, self.env | env, Stream(stdin), out, err)
        return Result(code, out.getvalue(), err.getvalue())

    @property
    def config_file(self) -> Path:
        return self.home / ".config/accelerd/accelerd.toml"

    def configure(self, text: str) -> Path:
        """Write the user's own file."""
        self.config_file.parent.mkdir(parents=True, exist_ok=True)
        self.config_file.write_text(text)
        return self.config_file


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose name leaves room for a socket's."""
    path = Path(tempfile.mkdtemp(prefix="actl"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def daemon(short: Path) -> Iterator[FakeDaemon]:
    """A running daemon that knows a fleet of models."""
    with FakeDaemon(short / "s", {"GET status": Reply(status(*FLEET))}).serve() as running:
        yield running


@pytest.fixture
def ctl(tmp_path: Path, short: Path) -> Ctl:
    """accelctl, pointed at the fake daemon whether it runs or not."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    env = {"HOME": str(tmp_path), "TERM": "xterm", "PATH": "/usr/bin:/bin", "USER": "somebody"}
    env |= {"XDG_RUNTIME_DIR": str(runtime), "ACCELERD_SOCKET": str(short / "s")}
    return Ctl(tmp_path, short / "s", env)
