"""A disk that does not answer, under a real systemd: who looks at it cannot be killed, and nobody waits for that."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.daemon.hung_disk import HungDisk
from tests.daemon.kit import QUICK
from tests.daemon.service import SERVICE, Service, installed
from tests.harness import eventually, fake_model
from tests.system.systemd_user import UserManager


@pytest.fixture
def disk() -> Iterator[HungDisk]:
    """Mounted before the manager begins, in whose namespace it then is."""
    with tempfile.TemporaryDirectory(prefix="accelerd-test-") as folder:
        Path(folder).chmod(0o755)
        with HungDisk(Path(folder) / "hung") as disk:
            yield disk


@pytest.fixture
def service(disk: HungDisk, user_manager: UserManager) -> Iterator[Service]:
    yield from installed(user_manager)
    disk.answer()


def looks(folder: str) -> list[psutil.Process]:
    """The processes that look at it."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "-I" in words and any(word.startswith(folder) for word in words):
            found.append(process)
    return found


def test_a_stop_does_not_wait_for_it(service: Service, disk: HungDisk) -> None:
    """Nor a restart, nor a start after a crash; and all who looked are gone once it answers."""
    service.install(QUICK + service.site.model("good") + fake_model("bad", disk.folder / "m.gguf"), socket=False)
    manager, folder = service.manager, str(disk.folder)
    pid = service.start()
    assert service.chat("good").status == 200

    def hang(count: int) -> bool:
        return len(looks(folder)) == count

    eventually(lambda: hang(1), "a process looks at it")
    manager.systemctl("restart", SERVICE)
    assert service.main_pid() != pid
    eventually(lambda: hang(2), "another looks at it")
    (second,) = (one for one in looks(folder) if one.ppid() == service.main_pid())
    scope = f"accelerd-look-{second.pid}.scope"
    manager.wait_for(scope, ActiveState="active")
    service.back(service.kill())
    eventually(lambda: hang(3), "another looks at it")
    assert service.chat("good").status == 200
    manager.systemctl("stop", SERVICE)
    seen = manager.properties(SERVICE)
    assert (seen["ActiveState"], seen["Result"]) == ("inactive", "success")
    assert hang(3), "nobody could kill them"
    disk.answer()
    eventually(lambda: not looks(folder), "they are gone")
    eventually(lambda: not service.model_units(), "and their scopes")
