"""What `accelctl doctor` looks at, one topic per module; each check is a function of Surroundings and never raises."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from accelerd.cli.checks import containers, engine, flm, host, memory, npu, service
from accelerd.cli.checks.base import Check, Surroundings

ALL: tuple[Callable[[Surroundings], Iterable[Check]], ...] = (
    host.python,
    host.directories,
    engine.configuration,
    engine.model_files,
    engine.programs,
    containers.programs,
    containers.rootless,
    containers.there,
    memory.memory,
    memory.swap,
    host.devices,
    flm.flm,
    npu.neighbours,
    service.daemon,
    service.way,
    service.level,
    service.units,
    service.linger,
    service.ports,
    service.control_socket,
    service.journal,
)


def run_all(surroundings: Surroundings) -> list[Check]:
    """Every check, in the order in which a person would fix things."""
    return [check for topic in ALL for check in topic(surroundings)]
