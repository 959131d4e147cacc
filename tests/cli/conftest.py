"""What every test of accelctl has: a fake daemon on a short socket path, and accelctl as a function.

A module with `WAYS = ("socket", "bus")` has its tests run over the control socket and again over a private bus.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from accelerd.base.ports import Roots
from accelerd.cli import run
from accelerd.cli.way import Chooser
from tests.settled import pytest_pyfunc_call, settled  # noqa: F401
from tests.system.fake_services import Bus, private_bus

from .fake_bus import FakeBus
from .fake_daemon import FLEET, FakeDaemon, Reply, Request, status


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    ways = getattr(metafunc.module, "WAYS", ())
    if ways and "way" in metafunc.fixturenames:
        metafunc.parametrize("way", ways, indirect=True)


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
    clients: list[Chooser] = field(default_factory=list)

    def client(self) -> Chooser:
        """What a command has; closed when the test is over."""
        self.clients.append(Chooser(Roots.from_env(self.env), self.env))
        return self.clients[-1]

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
def way(request: pytest.FixtureRequest) -> str:
    """How accelctl is to reach the daemon: "socket" or "bus"."""
    return str(getattr(request, "param", "socket"))


@pytest.fixture(scope="session")
def session_bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    """A bus for all tests: each has the name on it, one after the other."""
    from gi.repository import Gio, GLib

    with private_bus(tmp_path_factory.mktemp("bus")) as bus:
        # GLib's own thread for D-Bus, and the default context, begin with the first use and end with the process:
        # no test's fault.
        GLib.MainContext.default().iteration(False)
        flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
        Gio.DBusConnection.new_for_address_sync(bus.address, flags, None, None).close_sync(None)
        yield bus


@pytest.fixture(scope="module", autouse=True)
def bus_before(request: pytest.FixtureRequest) -> None:
    """The bus is there before the first test that may want it, and so nothing that the test leaves behind."""
    if "bus" in getattr(request.module, "WAYS", ()):
        request.getfixturevalue("session_bus")


@pytest.fixture
def where(short: Path, way: str) -> Path:
    """The daemon's socket. Where the bus is the way it must be in the usual place: that is how one knows the daemon."""
    if way == "socket":
        return short / "s"
    (short / "accelerd").mkdir(mode=0o700)
    return short / "accelerd/accelerd.sock"


@pytest.fixture
def daemon(where: Path, way: str, request: pytest.FixtureRequest) -> Iterator[FakeDaemon]:
    """A running daemon that knows a fleet of models."""
    with FakeDaemon(where, {"GET status": Reply(status(*FLEET))}).serve() as running:
        if way == "socket":
            yield running
            return
        address = request.getfixturevalue("session_bus").address
        with FakeBus(running, address, where.parent).serve() as running.bus:
            yield running
        wrong = [one for one in running.requests if one.host != "bus" and not needs_socket(one)]
        assert not wrong, "that goes over the bus"


@pytest.fixture
def bus(daemon: FakeDaemon) -> FakeBus:
    """The daemon on the bus; only where that is the way."""
    assert daemon.bus is not None
    return daemon.bus


def needs_socket(request: Request) -> bool:
    """What the bus does not carry."""
    return request.route.startswith("/v1/") or "follow" in request.query


@pytest.fixture
def ctl(tmp_path: Path, where: Path, way: str, request: pytest.FixtureRequest) -> Iterator[Ctl]:
    """accelctl, pointed at the fake daemon whether it runs or not."""
    env = {"HOME": str(tmp_path), "TERM": "xterm", "PATH": "/usr/bin:/bin", "USER": "somebody"}
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    if way == "bus":
        address = request.getfixturevalue("session_bus").address
        env |= {"XDG_RUNTIME_DIR": str(where.parents[1]), "DBUS_SESSION_BUS_ADDRESS": address}
    else:
        env |= {"XDG_RUNTIME_DIR": str(runtime), "ACCELERD_SOCKET": str(where)}
    made = Ctl(tmp_path, where, env)
    yield made
    for client in made.clients:
        client.close()
