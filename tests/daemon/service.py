"""A whole accelerd under a real systemd --user, with the shipped units: for tests of restarts, stops and crashes.

Looks at it from outside, like tests/harness.py: over its sockets, its processes, its units and its files.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from accelerd.base import names
from tests.daemon.kit import Site, alive, marked
from tests.harness import Daemon, eventually
from tests.ports import free_port
from tests.system.systemd_user import REPO, SOCKET, UserManager

UNITS = REPO / "units/user"
SERVICE = "accelerd.service"
LEMONADE_UNIT = "accelerd-lemonade-server.service"
UPGRADE = "TEST_UPGRADE"
REAPERS = [names.REAPER_UNIT.replace("@", f"@{end}") for end in ("failure", "success")]
PROGRAMS = {"accelerd": "-m accelerd", "accelctl": "-c 'import sys; from accelerd.cli import main; sys.exit(main())'"}


class Service(Daemon):
    """The installed accelerd of a test's user. `daemon()` is its main process, which changes."""

    def __init__(self, manager: UserManager, site: Site | None = None) -> None:
        self.manager = manager
        self.port = free_port()
        self.units: tuple[str, ...] = ()
        self._upgrades = 0
        self.env = {"XDG_RUNTIME_DIR": str(manager.runtime_dir)}
        self.site = site or Site(manager.directory(manager.base / "site"))
        self.site.gguf.chmod(0o644)
        self.instances = manager.runtime_dir / names.RUNTIME_DIR / names.INSTANCE_DIR

    def __repr__(self) -> str:
        return f"Service on port {self.port}"

    # --- the units ---

    def install(
        self,
        toml: str,
        *,
        dropin: str = "[Service]\nRestartSec=100ms",
        socket: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Units, programs and configuration; nothing is started. Without `socket` the service listens itself."""
        manager = self.manager
        # the battery and the sleep of the machine that runs the tests are nothing to them
        environment = {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent/system_bus", **(environment or {})}
        for name, arguments in PROGRAMS.items():
            manager.script(manager.home / ".local/bin" / name, f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        self.configure(toml)
        self.units = (SOCKET, SERVICE) if socket else (SERVICE,)
        for name, extra in ((names.REAPER_UNIT, ""), (SERVICE, dropin)):
            manager.install(name, (UNITS / name).read_text(), dropin=extra, environment=environment)
        if socket:
            manager.install_sockets(self.port)

    def upgrade(self) -> None:
        """Put another program in the place of the installed one, as an installer does."""
        self._upgrades += 1
        self.program(f'export {UPGRADE}={self._upgrades}\nexec {sys.executable} -m accelerd "$@"')

    def program(self, script: str) -> None:
        """What the unit is to run from now on."""
        path = self.manager.home / ".local/bin/accelerd"
        self.manager.script(path.with_name("accelerd.new"), f"#!/bin/sh\n{script}\n").replace(path)

    def version_tag(self) -> str | None:
        """Which upgrade runs."""
        return psutil.Process(self.main_pid()).environ().get(UPGRADE)

    def configure(self, text: str) -> None:
        listen = f'["127.0.0.1:{self.port}", "[::1]:{self.port}"]'
        preamble = f'[server]\nlisten = {listen}\ndrain_timeout = "5s"\n'
        path = self.manager.home / ".config/accelerd/accelerd.toml"
        # as an editor does it: a reload may come at any moment
        self.manager.write(path.with_suffix(".new"), preamble + text).replace(path)

    def start(self) -> int:
        self.manager.systemctl("start", *self.units)
        return self.main_pid()

    def stop_all(self) -> None:
        """What a person does to end it for good."""
        self.manager.systemctl("stop", *self.units)

    def main_pid(self) -> int:
        return int(self.manager.properties(SERVICE)["MainPID"])

    def back(self, old: int, within: float = 20) -> int:
        """Wait until another daemon than `old` answers; its pid."""

        def answers() -> int:
            with contextlib.suppress(OSError, ValueError):
                pid = int(self.status()["pid"])
                return pid if pid != old else 0
            return 0

        return int(eventually(answers, "the next daemon answers", within))

    def kill(self, number: str = "KILL") -> int:
        """Signal the daemon itself; its pid."""
        pid = self.main_pid()
        assert pid
        self.manager.run(["kill", f"-{number}", str(pid)])
        return pid

    def reaped(self) -> bool:
        """Is the reaper through with what it may have had to do?"""
        seen = [self.manager.properties(unit) for unit in REAPERS]
        return all(one["ActiveState"] in ("inactive", "failed") and not one.get("Job") for one in seen)

    def accelctl(self, *args: str) -> str:
        """What it prints."""
        return self.manager.run([self.manager.home / ".local/bin/accelctl", *args]).stdout

    # --- what is there ---

    def load(self, *models: str) -> dict[str, int]:
        """Load them; their pids."""
        for model in models:
            event = self.events(f"load?model={model}")[-1]
            assert event["event"] == "ready", (event, self.output())
        return self.pids(*models)

    def pids(self, *models: str) -> dict[str, int]:
        return {model: self.wait_state(model, "ready")["pid"] for model in models}

    def model_units(self) -> set[str]:
        """The units of models that systemd has."""
        pattern = ["accelerd-*.service", "accelerd-*.scope"]
        lines = self.manager.systemctl("list-units", "--all", "--plain", "--no-legend", *pattern).stdout.splitlines()
        own = {SERVICE, *REAPERS}
        return {line.split()[0] for line in lines if line.strip()} - own

    def files(self) -> set[str]:
        """What lies in the directory of the instances."""
        with contextlib.suppress(FileNotFoundError):
            return {path.name for path in self.instances.iterdir()}
        return set()

    def nothing_left(self) -> bool:
        """No process, no unit, no file of any model."""
        return not marked(self) and not self.model_units() and not self.files()

    def leftovers(self) -> str:
        """For the message of a test that finds some."""
        return f"{marked(self)} {self.model_units()} {self.files()}\n{self.output()}"

    def output(self) -> str:
        return self.manager.output(SERVICE) + "\n--- reaper\n" + self.manager.output(names.REAPER_UNIT)

    def lemonade(self) -> set[int]:
        """Every process of the daemon's Lemonade Server, with its backends, by the folder that is only its own."""
        folder, found = f"{self.manager.home}/.cache/accelerd/lemonade", set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("LEMONADE_CACHE_DIR") == folder and alive(process.pid):
                    found.add(process.pid)
        return found

    def lemonade_server(self) -> set[int]:
        """The main process of its unit, if there is one."""
        return {int(self.manager.properties(LEMONADE_UNIT)["MainPID"])} - {0}

    def listening(self) -> set[str]:
        """Every unix socket and TCP port that processes with our mark listen at, but for those that Lemonade chose."""
        found, lemonade = set(), self.lemonade()
        for process in marked(self):
            if process.pid in lemonade:
                continue
            with contextlib.suppress(psutil.Error):
                found |= {str(c.laddr) for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        return found


def installed(manager: UserManager) -> Iterator[Service]:
    """For a fixture: ends whatever the test left, whatever it did."""
    service = Service(manager)
    with ended(service):
        yield service


@contextlib.contextmanager
def ended(service: Service) -> Iterator[Service]:
    """Whatever the test left is ended."""
    manager = service.manager
    try:
        yield service
    finally:
        print(f"--- accelerd's output ---\n{service.output()}")  # pytest shows it on failure
        manager.systemctl("stop", *service.units, *REAPERS, check=False)
        units = service.model_units()
        if units:
            manager.systemctl("kill", "--signal=KILL", *units, check=False)
            manager.systemctl("stop", *units, check=False)
            manager.systemctl("reset-failed", *units, check=False)
        for process in marked(service):
            with contextlib.suppress(psutil.Error):
                process.kill()


def records(service: Service) -> list[dict[str, object]]:
    """The records of surviving instances."""
    return [json.loads(path.read_text()) for path in Path(service.instances).glob("*.json")]
