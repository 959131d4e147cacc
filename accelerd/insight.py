"""What is known about models beside their lifecycle: footprints, plans, how long they took, what they printed.

The read side for the control socket (and the bus, later). Changes nothing, decides nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import msgspec

from accelerd.config.model import LAUNCH_FIELDS, ModelSpec
from accelerd.devices.choice import first_gpu
from accelerd.devices.model import Device
from accelerd.engines.base import Engine, LaunchPlan
from accelerd.instances import Facts
from accelerd.ports import Roots
from accelerd.scheduler.placement import OUTGROWN
from accelerd.supervise.output import OutputRing
from accelerd.supervise.supervisor import ProcessSupervisor, Progress
from accelerd.system.state import StateStore


def fingerprint(spec: ModelSpec) -> str:
    """Names one way of running one model in the state file. Says nothing about its environment, which may be secret."""
    launch = {name: getattr(spec, name) for name in LAUNCH_FIELDS if name != "env"}
    return hashlib.sha256(msgspec.json.encode(launch, order="sorted")).hexdigest()[:24]


def device_of(spec: ModelSpec, devices: Sequence[Device]) -> str:
    """The id of the device that the model takes when there are these: a GPU's PCI slot, or "cpu"."""
    found = first_gpu(devices) if spec.gpu_layers != 0 else None
    return found.id if found is not None else "cpu"


class Insight:
    """See the module's text."""

    def __init__(
        self,
        supervisor: ProcessSupervisor,
        engines: Mapping[str, Engine],
        state: StateStore,
        roots: Roots,
        devices: Callable[[], Sequence[Device]],
    ) -> None:
        self._supervisor = supervisor
        self._engines = engines
        self._state = state
        self._roots = roots
        self._devices = devices

    def facts(self, instance: int) -> Facts | None:
        return self._supervisor.facts(instance)

    def progress(self, instance: int) -> Progress | None:
        return self._supervisor.progress(instance)

    def output(self, model: str) -> OutputRing:
        return self._supervisor.output(model)

    async def memory(self, instance: int) -> int | None:
        """Bytes that the instance uses now."""
        return await self._supervisor.memory(instance)

    async def plan(self, spec: ModelSpec) -> LaunchPlan:
        """How the model would be started now. AccelError when it could not."""
        return await self._engines[spec.engine].plan(spec, self._roots.runtime)

    def footprint(self, spec: ModelSpec) -> tuple[int, str]:
        """Bytes to reserve, and where the number comes from."""
        estimate, source = self._engines[spec.engine].footprint(spec)
        need = self._state.needed_memory(fingerprint(spec))
        if need is not None and need > estimate:
            return need, f"{OUTGROWN} less, in an earlier run"
        return estimate, source

    def remember_need(self, spec: ModelSpec, memory: int) -> None:
        """It ran out of memory with less."""
        self._state.remember_need(fingerprint(spec), memory)

    def forget_need(self, spec: ModelSpec) -> tuple[int, str]:
        """The footprint, whatever happened in the past."""
        self._state.remember_need(fingerprint(spec), None)
        return self.footprint(spec)

    def load_seconds(self, spec: ModelSpec) -> float | None:
        """How long the last load took."""
        return self._state.load_seconds(fingerprint(spec))

    def device(self, spec: ModelSpec) -> str:
        """The id of the device that the model runs on, or would now."""
        return device_of(spec, self._devices())

    @property
    def degraded(self) -> str | None:
        """Why nothing can be remembered right now."""
        return self._state.degraded
