"""Upkeep of toolboxes by a whole accelerd, with the shipped units, podman and toolbox: refreshes under load, crashes,
clients that go.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from accelerd.base import names
from tests.daemon.container_service import ContainerService, container_service
from tests.daemon.kit import QUICK, marked
from tests.daemon.service import SERVICE
from tests.harness import UnixConnection, eventually
from tests.system.containers import IMAGE, ContainerManager
from tests.system.systemd_user import wait_until

CARE = "care"
TAG = "localhost/daemon-care:1"
_versions = itertools.count(1)


class Care(ContainerService):
    """A service whose user has one more toolbox, which is refreshed."""

    def new_image(self, change: str = "true") -> str:
        """Give the toolbox's image name to another image, like IMAGE but for one command; its id."""
        maker = f"maker{next(_versions)}"
        self.podman("run", "--name", maker, "--network=none", "--user=root", IMAGE, "sh", "-c", change)
        # An --entrypoint would stay in the image: podman 5 does not take it back with --change.
        self.podman("commit", "--quiet", "--change", f"LABEL made={maker}", maker, TAG)
        self.podman("rm", maker)
        return self.podman("image", "inspect", TAG, "--format={{.Id}}")

    def make_toolbox(self) -> str:
        """Its container's id."""
        create = ["toolbox", "create", "--assumeyes", "--image", TAG, "--container", CARE]
        self.manager.run(create, timeout=60)
        self.podman("start", CARE)
        return self.id()

    def model(self, name: str, mode: str = "ok", **settings: Any) -> str:
        return self.toolbox_model(name, mode, container=CARE, **settings)

    def id(self, name: str = CARE) -> str:
        found = self.container(name)
        return str(found["Id"]) if found else ""

    def image_id(self) -> str:
        found = self.container(CARE)
        assert found is not None
        return str(found["Image"])

    def mine(self) -> set[str]:
        """Containers whose name begins with the toolbox's."""
        return {name for name in self.podman("ps", "--all", "--format={{.Names}}").split() if name.startswith(CARE)}

    def accelctl(self, *args: str) -> tuple[int, str, str]:
        program = str(self.manager.home / ".local/bin/accelctl")
        done = self.manager.run([program, *args], check=False, timeout=90)
        return done.returncode, done.stdout, done.stderr

    def refresh(self) -> dict[str, Any]:
        """Its last event."""
        return self.events(f"toolbox/refresh?name={CARE}")[-1]

    @contextlib.contextmanager
    def refreshing(self, until: tuple[str, str]) -> Iterator[None]:
        """A refresh that has come to a step of a model; the client goes at the end of the block."""
        with contextlib.closing(UnixConnection(self.control_socket)) as connection:
            connection.request("POST", f"/accelerd/v1/toolbox/refresh?name={CARE}")
            with connection.getresponse() as response:
                for line in response:
                    event = json.loads(line)
                    assert event["event"] == "progress", (event, self.output())
                    if (event["step"], event["model"]) == until:
                        break
                yield

    def begun(self) -> Any:
        """What is on disk of a refresh that is not over."""
        path = self.manager.home / ".local/state" / names.STATE_DIR / names.TOOLBOX_FILE
        return json.loads(path.read_text())["begun"]


@pytest.fixture
def service(container_manager: ContainerManager) -> Iterator[Care]:
    for made in container_service(container_manager):
        service = Care(container_manager)
        service.port, service.site = made.port, made.site
        try:
            yield service
        finally:
            if service.units:
                service.stop_all()
            for name in service.mine():
                service.podman("rm", "--force", "--time", "0", name, check=False)


def test_a_refresh_costs_no_client_an_answer(service: Care) -> None:
    old_image = service.new_image()
    old = service.make_toolbox()
    service.install(QUICK + service.model("one", parallel=8) + service.model("two", parallel=8))
    service.start()
    before = service.load("one", "two")
    new_image = service.new_image("touch /new")
    over, outcomes = threading.Event(), Counter[str]()

    def ask(model: str) -> None:
        while not over.is_set():
            try:
                answer = service.chat(model)
                outcomes["whole" if answer.status == 200 else f"{answer.status} {answer.body!r}"] += 1
            except (OSError, http.client.HTTPException) as error:
                outcomes[repr(error)] += 1

    clients = [threading.Thread(target=ask, args=(model,)) for model in ("one", "two", "one", "two")]
    for client in clients:
        client.start()
    try:
        status, out, err = service.accelctl("toolbox", "refresh", CARE, "--json")
        answered = outcomes.total()
        assert wait_until(lambda: outcomes.total() > answered + 20)
    finally:
        over.set()
        for client in clients:
            client.join()
    assert status == 0, (out, err, service.output())
    last = json.loads(out)
    print(f"{outcomes.total()} requests, refreshed in {last['seconds']} s")
    assert (last["event"], last["old_image_id"], last["image_id"]) == ("refreshed", old_image, new_image)
    assert last["models"] == ["one", "two"]
    assert set(outcomes) == {"whole"}, outcomes
    assert service.id() not in ("", old)
    assert service.image_id() == new_image
    assert service.mine() == {CARE}
    after = service.pids("one", "two")
    assert not set(after.values()) & set(before.values())
    assert service.site.spawns() == 4, "each was loaded once more"
    assert service.begun() is None


def test_a_model_that_cannot_start_in_the_new_one_goes_on_in_the_old(service: Care) -> None:
    service.new_image()
    old = service.make_toolbox()
    service.install(QUICK + service.model("one"))
    service.start()
    service.load("one")
    began = service.container(CARE)["State"]["StartedAt"]  # type: ignore[index]
    service.new_image("rm /usr/bin/python3*")
    status, out, err = service.accelctl("toolbox", "refresh", CARE)
    assert (status, out) == (1, "")
    assert "the old one is in place as before" in err.splitlines()[-1]
    assert f"{CARE}: restoring the old toolbox" in err
    assert service.id() == old
    assert service.container(CARE)["State"]["StartedAt"] == began  # type: ignore[index]
    assert service.mine() == {CARE}
    assert service.state("one") == "ready"
    assert service.chat("one").status == 200


def test_what_a_killed_daemon_leaves_in_the_middle_the_next_one_puts_back(service: Care) -> None:
    old_image = service.new_image()
    old = service.make_toolbox()
    service.install(QUICK + service.model("one") + service.model("two", "slow-load:1"))
    daemon = service.start()
    service.load("one", "two")
    service.new_image("touch /new")
    with service.refreshing(("load", "two")):
        assert service.begun()["stage"] == "swap"
        assert service.mine() == {CARE, f"{CARE}-old"}
        service.kill()
    service.back(daemon)
    eventually(lambda: service.begun() is None, "it is repaired", 40)
    assert service.id() == old
    assert service.image_id() == old_image
    assert service.mine() == {CARE}
    assert [service.chat(model).status for model in ("one", "two")] == [200, 200]
    assert f"a refresh of toolbox {CARE} was interrupted: the old one is in place as before" in service.output()
    assert wait_until(lambda: len(marked(service)) == 2), service.leftovers()
    assert service.refresh()["event"] == "refreshed"


def test_a_client_that_goes_takes_its_refresh_with_it(service: Care) -> None:
    service.new_image()
    old = service.make_toolbox()
    service.install(QUICK + service.model("one") + service.model("two", "slow-load:1"))
    service.start()
    service.load("one", "two")
    service.new_image("touch /new")
    with service.refreshing(("load", "two")):
        assert service.begun()["stage"] == "swap"
    eventually(lambda: service.begun() is None, "it is undone", 40)
    eventually(lambda: service.control("GET", "toolboxes").json()["refreshing"] is None, "it is over")
    assert service.id() == old
    assert service.mine() == {CARE}
    assert [service.wait_state(model, "ready")["state"] for model in ("one", "two")] == ["ready", "ready"]


def test_a_restart_in_the_middle_undoes_it_first(service: Care) -> None:
    service.new_image()
    old = service.make_toolbox()
    service.install(QUICK + service.model("one") + service.model("two", "slow-load:1"))
    daemon = service.start()
    pids = service.load("one", "two")
    service.new_image("touch /new")
    with service.refreshing(("drain", "one")):
        began = time.monotonic()
        service.manager.systemctl("restart", SERVICE)
        took = time.monotonic() - began
    service.back(daemon)
    assert took < 20, "the undoing is bounded"
    assert service.begun() is None
    assert service.id() == old
    assert service.mine() == {CARE}
    assert service.pids("two")["two"] == pids["two"], "it had not been its turn"
    assert service.chat("one").status == 200


def test_list_and_pin_by_accelctl(service: Care) -> None:
    image = service.new_image("printf '#!/bin/sh\\necho \"version: 5412 (3a4b5c6)\" >&2' >/usr/bin/llama-server; "
                              "chmod 755 /usr/bin/llama-server")  # fmt: skip
    service.make_toolbox()
    service.install(QUICK + service.model("one"))
    daemon = service.start()
    status, out, err = service.accelctl("toolbox", "list")
    assert (status, err) == (0, "")
    line = next(line for line in out.splitlines() if line.startswith(CARE))
    assert "5412 (3a4b5c6)" in line
    assert f"{TAG} ({image[:12]})" in line
    assert line.endswith("one")
    assert service.accelctl("toolbox", "pin", CARE)[0] == 0
    service.new_image("touch /new")
    service.manager.systemctl("restart", SERVICE)
    service.back(daemon)
    status, out, err = service.accelctl("toolbox", "refresh", CARE)
    assert (status, out) == (1, "")
    assert f"accelctl toolbox unpin {CARE}" in err
    assert service.accelctl("toolbox", "unpin", CARE)[0] == 0
    status, out, err = service.accelctl("toolbox", "refresh", CARE)
    assert status == 1, "the new image has no llama-server"
    assert "there is no llama-server in the new one; the old one holds 5412 (3a4b5c6)" in err
    status, out, err = service.accelctl("toolbox", "refresh", "cara")
    assert (status, f"did you mean {CARE}" in err) == (5, True)
