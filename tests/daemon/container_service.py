"""A whole accelerd under a real systemd --user whose user has podman and a toolbox, with the shipped units.

Adds to Service what containers have: a toolbox of the user's own, models in it, and what may be left of them. Programs
and files of models lie in the user's home, which a toolbox sees as it is.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from accelerd.base import names
from tests.containers import standins
from tests.daemon.kit import Site, marked
from tests.daemon.service import Service, ended
from tests.ports import free_port
from tests.system.containers import IMAGE, ContainerManager
from tests.system.systemd_user import REPO, wait_until

TOOLBOX = "tb"  # the user's own, which no model's end may stop
EXISTING = "mine"  # another container of the user's own
_numbers = itertools.count(1)


class ContainerService(Service):
    """See the module's text. `manager` is shared by all tests of a session, what is in it is not."""

    manager: ContainerManager

    def __init__(self, manager: ContainerManager) -> None:
        self.fakes = manager.home / "fakes"
        if not self.fakes.exists():
            shutil.copytree(REPO / "tests/fakes", self.fakes, ignore=shutil.ignore_patterns("__pycache__", "test_*"))
        site = Site(manager.directory(manager.home / f"site-{next(_numbers)}"), self.fakes / "fake_server.py")
        super().__init__(manager, site)
        if self.container(TOOLBOX) is None:
            manager.run(["toolbox", "create", "--assumeyes", "--image", IMAGE, "--container", TOOLBOX], timeout=60)
        self.podman("start", TOOLBOX)

    # --- models ---

    def toolbox_model(self, name: str, mode: str = "ok", env: dict[str, str] | None = None, **settings: Any) -> str:
        """TOML of a fake model in the user's toolbox."""
        return self.site.model(name, mode, env, **{"home": "toolbox", "container": TOOLBOX, **settings})

    def every_home(self, mode: str = "ok", **settings: Any) -> dict[str, str]:
        """TOML of a model for each home that a machine may have, by name."""
        site, folder = self.site, str(self.site.directory)
        in_image = {"home": "podman", "image": IMAGE, "mounts": [str(self.fakes), folder]}
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        self._create_existing(mode)
        return {
            "unit": site.model("unit", mode, home="systemd", **settings),
            "box": self.toolbox_model("box", mode, **settings),
            "distro": self.toolbox_model("distro", mode, home="distrobox", **settings),
            "run": site.model("run", mode, **in_image, **settings),
            "plain": site.model("plain", mode, home="child", **settings),
            "own": "\n".join(["[models.own]", 'home = "container"', f'container = "{EXISTING}"', *lines, ""]),
        }

    def _create_existing(self, mode: str) -> None:
        """A container of the user's that serves a model whenever it runs."""
        port = str(free_port())
        server = [str(self.site.program), "-m", "x", "--host", "0.0.0.0", "--port", port]
        options = [f"--volume={self.manager.home}:{self.manager.home}", f"--publish=127.0.0.1:{port}:{port}"]
        self.podman("create", "--name", EXISTING, f"--env=FAKE_MODE={mode}", *options, IMAGE, "python3", *server)

    def with_distrobox(self) -> dict[str, str]:
        """An environment for the service in which there is a distrobox."""
        folder = standins.install(self.manager.directory(self.manager.home / "standins"), "distrobox")
        for path in (folder, *folder.iterdir()):
            path.chmod(0o755)
        return {"PATH": f"{folder}:{self.manager.environment()['PATH']}"}

    # --- containers ---

    def podman(self, *args: str, check: bool = True) -> str:
        return self.manager.run(["podman", *args], check=check, timeout=60).stdout.strip()

    def container(self, name: str) -> dict[str, Any] | None:
        done = self.manager.run(["podman", "container", "inspect", name], check=False)
        return dict(json.loads(done.stdout)[0]) if done.returncode == 0 else None

    def toolbox_began(self) -> str:
        """When it was started; another answer means that it was stopped meanwhile."""
        found = self.container(TOOLBOX)
        assert found is not None
        return str(found["State"]["StartedAt"])

    def toolbox_runs(self) -> bool:
        found = self.container(TOOLBOX)
        return found is not None and found["State"]["Status"] == "running"

    def sessions(self) -> list[str]:
        """podman's exec sessions in the toolbox."""
        found = self.container(TOOLBOX)
        return list(found["ExecIDs"]) if found is not None else []

    def own_containers(self) -> set[str]:
        """The containers that accelerd made, running or not."""
        return set(self.podman("ps", "--all", "--format={{.Names}}", "--filter=label=io.accelerd.owner").split())

    def couriers(self) -> list[psutil.Process]:
        """Live processes that bring a model in or keep its way open, by their command line."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.uids().real == self.uid and any(str(self.instances) in word for word in process.cmdline()):
                    found.append(process)
        ours = {process.pid for process in marked(self)} | {self.main_pid()}
        return [process for process in found if process.pid not in ours]

    @property
    def uid(self) -> int:
        return self.manager.home.stat().st_uid

    def nothing_left(self) -> bool:
        nothing = super().nothing_left() and not self.couriers()
        return nothing and not self.sessions() and not self.own_containers() and self.toolbox_runs()

    def leftovers(self) -> str:
        containers = f"{self.couriers()} {self.sessions()} {self.own_containers()} {self.toolbox_runs()=}"
        return f"{containers} {super().leftovers()}"


def container_service(manager: ContainerManager) -> Iterator[ContainerService]:
    """For a fixture: ends whatever the test left, and forgets what the daemon wrote.

    An exec session that is left is the fault of this test: the toolbox is shared.
    """
    service = ContainerService(manager)
    try:
        with ended(service):
            yield service
        assert wait_until(lambda: not service.sessions()), f"podman keeps {service.sessions()}"
    finally:
        if service.sessions():
            service.podman("rm", "--force", "--time", "0", TOOLBOX, check=False)
        manager.close()
        for name in (*service.own_containers(), EXISTING):
            service.podman("rm", "--force", "--time", "0", name, check=False)
        for log in manager.logs.iterdir():
            log.unlink()
        for folder in (".local/state", ".cache/accelerd", ".config/accelerd", service.site.directory.name):
            shutil.rmtree(manager.home / folder, ignore_errors=True)
        shutil.rmtree(Path(service.instances).parent / names.INSTANCE_DIR, ignore_errors=True)
