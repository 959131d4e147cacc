"""Random rounds as in test_rounds.py, with models in toolboxes, containers and units of systemd together.

The courier of a toolbox (`toolbox run`, `podman exec`, conmon) is killed now and then too, and the user works in the
toolbox beside the models.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import psutil
import pytest

from tests.daemon.container_service import TOOLBOX, ContainerService, container_service
from tests.daemon.rounds import ROUNDS, SEED, Kind, World
from tests.system.containers import IMAGE, ContainerManager

IN_BOX = {"container": TOOLBOX}
SHELL_HOMES = ("toolbox", "distrobox")


@pytest.fixture
def service(container_manager: ContainerManager) -> Iterator[ContainerService]:
    yield from container_service(container_manager)


def kinds(service: ContainerService) -> dict[str, Kind]:
    in_image = {"image": IMAGE, "mounts": [str(service.fakes), str(service.site.directory)]}
    return {
        "unit": Kind("systemd"),
        "deaf": Kind("systemd", "ignore-term", {"stop_timeout": 0.2}),
        "box": Kind("toolbox", "ok", IN_BOX),
        "boxdeaf": Kind("toolbox", "ignore-term", {**IN_BOX, "stop_timeout": 0.2}),
        "boxslow": Kind("toolbox", "slow-load:0.3", IN_BOX),
        "boxbound": Kind("toolbox", "ok", {**IN_BOX, "survive": False}),
        "distro": Kind("distrobox", "ok", IN_BOX),
        "run": Kind("podman", "ok", in_image),
    }


class ContainerWorld(World):
    """A World with containers."""

    service: ContainerService

    def __init__(self, service: ContainerService, models: dict[str, Kind], *, tcp: bool, seed: int = SEED) -> None:
        super().__init__(service, models, tcp=tcp, seed=seed)
        self.deeds += [self.kill_courier, self.work_in_the_toolbox]

    def kill_courier(self) -> None:
        """What brought a model in, or keeps its way open, ends; the model does not notice."""
        couriers = [p for p in self.service.couriers() if p.name() in ("toolbox", "podman", "conmon")]
        if couriers:
            victim = self.chance.choice(couriers)
            how = self.chance.choice([signal.SIGTERM, signal.SIGKILL])
            with contextlib.suppress(psutil.Error):
                if victim.name() == "conmon" and how == signal.SIGTERM:
                    return  # it hands that on to the model
                self.done.append(f"{how!r} to {victim.name()} {victim.pid}")
                victim.send_signal(how)

    def work_in_the_toolbox(self) -> None:
        self.done.append("the user works in the toolbox")
        argv = ["toolbox", "run", "--container", TOOLBOX, "sh", "-c", "echo $((6 * 7))"]
        assert self.service.manager.run(argv).stdout == "42\n"

    def homes_hold(self, live: dict[str, int]) -> dict[str, bool]:
        inside = [name for name in live if self.models[name].home in SHELL_HOMES]
        scopes = [unit for unit in self.service.model_units() if unit.endswith(".scope")]
        return {
            **super().homes_hold(live),
            "exec sessions": len(self.service.sessions()) == len(inside),
            "scopes": len(scopes) <= len(inside),  # a courier may have been killed
            "containers": self.service.own_containers() == {"accelerd-run"} & {f"accelerd-{name}" for name in live},
            "toolbox": self.service.toolbox_runs(),
        }


@pytest.mark.timeout(60 + ROUNDS * 30)
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_done_when_random_rounds_in_toolboxes_and_units_leave_nothing(
    service: ContainerService, transport: str
) -> None:
    world = ContainerWorld(service, kinds(service), tcp=transport == "tcp")
    began = service.toolbox_began()
    world.begin(environment=service.with_distrobox())
    for _ in range(ROUNDS // 2):
        world.play()
    world.end()
    assert service.toolbox_began() == began
    print(f"{len(world.done)} deeds; {service.site.spawns()} starts of models")
