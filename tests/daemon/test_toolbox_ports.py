"""Containers of the user's own that publish one port: their models take turns, without a `group`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.daemon.container_service import ContainerService, container_service
from tests.daemon.kit import QUICK
from tests.ports import free_port
from tests.system.containers import IMAGE, ContainerManager

NAMES = ("first", "second")


@pytest.fixture
def service(container_manager: ContainerManager) -> Iterator[ContainerService]:
    for service in container_service(container_manager):
        yield service
        service.podman("rm", "--force", "--time", "0", "--ignore", *NAMES)


def test_models_whose_containers_publish_one_port_take_turns(service: ContainerService) -> None:
    port = str(free_port())
    server = [str(service.site.program), "-m", "x", "--host", "0.0.0.0", "--port", port]
    volume = f"--volume={service.manager.home}:{service.manager.home}"
    toml = []
    for name, address in zip(NAMES, ("127.0.0.1:", ""), strict=True):
        publish = f"--publish={address}{port}:{port}"
        service.podman("create", "--name", name, volume, publish, IMAGE, "python3", *server)
        toml.append(f'[models.{name}]\nhome = "container"\ncontainer = "{name}"\nmemory = "1MiB"\n')
    service.install(QUICK + "".join(toml))
    service.start()
    for name in (*NAMES, *NAMES):
        assert service.chat(name).status == 200, (name, service.output())
        running = service.podman("ps", "--format={{.Names}}").split()
        assert [one for one in NAMES if one in running] == [name]
    service.stop_all()
