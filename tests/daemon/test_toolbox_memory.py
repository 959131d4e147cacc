"""A model that is killed by the OOM killer, in a unit and in a toolbox, under the shipped units: how everybody hears.

That the kernel did it is made up (oom_main.py): systemd's word for it, and the count in the container's control group.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from accelerd.base import names
from tests.daemon.container_service import TOOLBOX, ContainerService, container_service
from tests.daemon.kit import QUICK
from tests.harness import eventually
from tests.system.containers import ContainerManager
from tests.system.systemd_user import wait_until

MIB = 1 << 20


@pytest.fixture
def service(container_manager: ContainerManager) -> Iterator[ContainerService]:
    yield from container_service(container_manager)


class Journal:
    """The other end of journald's protocol: takes every record at once, as journald does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: list[dict[str, str]] = []
        self._reader = threading.Thread(target=self._read, name="journal")

    def __enter__(self) -> Journal:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self.path.chmod(0o666)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes the reader
        self._reader.join()
        self._socket.close()
        self.path.unlink()

    def _read(self) -> None:
        while data := self._socket.recv(1 << 16):
            lines = data.decode(errors="replace").splitlines()
            self._records.append(dict(line.split("=", 1) for line in lines if "=" in line))

    def of(self, message_id: str) -> list[dict[str, str]]:
        """All records with this id so far."""
        return [record for record in list(self._records) if record.get("MESSAGE_ID") == message_id]


class Kernel:
    """The control group of the toolbox in a made-up /sys, and its count of kills."""

    def __init__(self, service: ContainerService) -> None:
        self.sys = service.manager.directory(service.manager.home / "sys")
        init = (service.container(TOOLBOX) or {})["State"]["Pid"]
        path = Path(f"/proc/{init}/cgroup").read_text().partition("0::")[2].strip()
        self.group = self.sys / "fs/cgroup" / path.lstrip("/")
        service.manager.write(self.group / "cgroup.procs", "")
        self._service = service
        self.kills(3)  # somebody else's, earlier

    def kills(self, count: int) -> None:
        self._service.manager.write(self.group / "memory.events", f"oom 9\noom_kill {count}\n")


def out_of_memory(service: ContainerService, model: str, pid: int) -> None:
    service.manager.run(["kill", "-KILL", str(pid)])  # as the kernel does
    service.wait_state(model, "stopped")


@pytest.mark.parametrize("model", ["unit", "box"])
def test_done_when_an_oom_kill_is_named_and_leaves_the_daemon_and_its_neighbours_alone(
    service: ContainerService, model: str
) -> None:
    unit = service.site.model("unit", home="systemd", memory="100MiB", memory_max="1GiB")
    box = service.toolbox_model("box", memory="100MiB")
    neighbour = service.site.model("near", home="systemd")
    kernel = Kernel(service)
    with Journal(service.manager.home / "journal") as journal:
        environment = {"TEST_SYS": str(kernel.sys), "TEST_JOURNAL": str(journal.path)}
        service.install(QUICK + unit + box + neighbour, environment=environment)
        service.program(f"exec {sys.executable} -m tests.daemon.oom_main")
        daemon = service.start()
        pids = service.load("unit", "box", "near")
        kernel.kills(4)
        out_of_memory(service, model, pids.pop(model))
        # the control status and accelctl, for programs and for people
        seen = service.status(model)
        assert seen["error"]["cause"] == "oom-kill"
        assert "reserves 125 MiB instead of 100 MiB" in seen["reason"]
        assert (seen["memory"], seen["retry_in"]) == (125 * MIB, None)
        shown = json.loads(service.accelctl("status", "--json", model))["models"][0]
        assert (shown["error"]["cause"], shown["memory"]) == ("oom-kill", 125 * MIB)
        told = " ".join(service.accelctl("status").split())
        assert f"{model}: " in told
        assert "out of memory" in told
        if model == "unit":
            assert "memory_max of 1.0 GiB" in told
        # the journal
        (record,) = eventually(lambda: journal.of(names.MSG_OUT_OF_MEMORY), "it is in the journal")
        assert (record[names.FIELD_MODEL], record["PRIORITY"]) == (model, "3")
        assert len(journal.of(names.MSG_CHILD_DIED)) == 1
    # neighbours and the daemon; nothing is tried again by itself
    assert service.pids(*pids) == pids
    assert [service.chat(name).status for name in pids] == [200, 200]
    assert service.main_pid() == daemon
    assert service.site.spawns(model) == 1
    # a request may have it again, with more memory
    assert service.chat(model).status == 200
    assert service.status(model)["error"] is None
    assert service.status(model)["memory"] == 125 * MIB
    service.stop_all()
    assert wait_until(service.nothing_left), service.leftovers()


def test_a_kill_by_a_person_is_none(service: ContainerService) -> None:
    """The container's count has not risen."""
    kernel = Kernel(service)
    service.install(QUICK + service.toolbox_model("box"), environment={"TEST_SYS": str(kernel.sys)})
    service.program(f"exec {sys.executable} -m tests.daemon.oom_main")
    service.start()
    out_of_memory(service, "box", service.load("box")["box"])
    assert service.status("box")["error"]["cause"] == "signaled"


def test_a_model_that_shall_always_be_there_is_given_up_after_three(service: ContainerService) -> None:
    service.install(QUICK + service.site.model("unit", home="systemd", memory="100MiB", pin=True))
    service.program(f"exec {sys.executable} -m tests.daemon.oom_main")
    service.start()
    figures, pid = [], None

    def is_there(before: int | None) -> Any:
        """Ready with another process; before its end is known, a model is ready and has none."""
        seen = service.status("unit")
        return seen if seen["state"] == "ready" and seen["pid"] not in (None, before) else None

    for _ in range(3):
        seen = eventually(lambda before=pid: is_there(before), "it is there")
        figures.append(seen["memory"] // MIB)
        pid = seen["pid"]
        service.manager.run(["kill", "-KILL", str(pid)])
    seen = service.wait_state("unit", "failed")
    assert figures == [100, 125, 156], "each time it reserves more"
    assert "3 times, given up" in seen["reason"]
    assert service.site.spawns("unit") == 3
    assert "accelctl reset unit" in service.accelctl("status")
