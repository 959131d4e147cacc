"""A fork of llama-server in a toolbox and in a container of its own: it sees the file with its key there, too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.daemon.container_service import ContainerService, container_service
from tests.daemon.kit import QUICK
from tests.system.containers import IMAGE, ContainerManager
from tests.system.systemd_user import wait_until


@pytest.fixture
def service(container_manager: ContainerManager) -> Iterator[ContainerService]:
    yield from container_service(container_manager)


def test_the_key_reaches_a_fork_in_a_container(service: ContainerService) -> None:
    site, mounts = service.site, [str(service.fakes), str(service.site.directory)]
    wrapper = service.manager.script(
        site.directory / "fork", f'#!/bin/sh\nexport FAKE_FORK=1\nexec {site.program} "$@"\n'
    )
    toml = service.toolbox_model("box", binary=str(wrapper))
    toml += site.model("run", home="podman", image=IMAGE, mounts=mounts, binary=str(wrapper))
    service.install(QUICK + toml)
    service.start()
    for name in service.load("box", "run"):
        assert service.chat(name).status == 200
        argv = site.events("spawn")[-1]["argv"]
        assert "--api-key-file" in argv
    assert not [name for name in service.files() if name.endswith(".key")]
    service.stop_all()
    assert wait_until(service.nothing_left), service.leftovers()
