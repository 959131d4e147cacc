"""Models in toolboxes, for toolbox refreshes: which there are, and how to unload and reload them.

Asks the scheduler; knows no container.
"""

from __future__ import annotations

from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import Snapshot
from accelerd.scheduler.service import Scheduler
from accelerd.supervise.homes.containers.refresh_context import ModelInToolbox
from accelerd.supervise.supervisor import ProcessSupervisor

LOADED = (State.STARTING, State.READY, State.ASLEEP, State.WAKING)


class ToolboxModels:
    """Implements refresh_kit.Models."""

    def __init__(self, scheduler: Scheduler, supervisor: ProcessSupervisor) -> None:
        self._scheduler = scheduler
        self._supervisor = supervisor

    def used(self) -> dict[str, list[ModelInToolbox]]:
        """By the name of their toolbox, in the order of the configuration."""
        found: dict[str, list[ModelInToolbox]] = {}
        for snapshot in self._scheduler.snapshots():
            if snapshot.spec.home == "toolbox" and snapshot.spec.container:
                found.setdefault(snapshot.spec.container, []).append(self._used(snapshot))
        return found

    def _used(self, snapshot: Snapshot) -> ModelInToolbox:
        facts = self._supervisor.facts(snapshot.instance) if snapshot.instance is not None else None
        pid = facts.pid if facts is not None else None
        return ModelInToolbox(snapshot.spec.name, str(snapshot.state), snapshot.state in LOADED, pid)

    async def unload(self, model: str) -> None:
        """Let its running requests end and stop it. AccelError."""
        await self._scheduler.unload(model)

    async def load(self, model: str) -> None:
        """Have it ready. AccelError."""
        await self._scheduler.load(model)
