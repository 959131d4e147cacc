"""The configuration: reading it again, and checking what is on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from accelerd.config.problems import Problem
from accelerd.control.jobs import Job, Jobs
from accelerd.control.operations import NoArguments, Operation, operation


class Reloaded(msgspec.Struct, tag="reloaded", tag_field="event"):
    """Names of models by what became of them; `settings`: keys outside models that changed."""

    added: list[str] = []
    removed: list[str] = []
    relaunch: list[str] = []
    updated: list[str] = []
    unchanged: list[str] = []
    settings: list[str] = []
    elapsed: float = 0.0


class ConfigCheck(msgspec.Struct):
    """What is wrong with the configuration as it is on disk. Empty: nothing."""

    problems: Sequence[Problem]


class ConfiguredDaemon(Protocol):
    """The owner of the configuration."""

    async def reload(self) -> dict[str, list[str]]:
        """Read it again: what changed. AccelError config_invalid."""
        ...

    async def problems(self) -> Sequence[Problem]:
        """Of the configuration as it is on disk now."""
        ...


class ConfigOperations:
    """What clients want done with the configuration."""

    def __init__(self, daemon: ConfiguredDaemon, jobs: Jobs) -> None:
        self._daemon = daemon
        self._jobs = jobs

    def operations(self) -> list[Operation]:
        return [
            operation("job", "reload", self.reload, outcome=Reloaded),
            operation("look", "config/check", self.check),
        ]

    async def reload(self, request: NoArguments) -> Job:
        """Read the configuration again and apply it, as a whole or not at all."""

        async def work(job: Job) -> Reloaded:
            return Reloaded(**await self._daemon.reload(), elapsed=job.elapsed)

        return self._jobs.start("reload", "", work, cancellable=False)

    async def check(self) -> ConfigCheck:
        """Check the configuration on disk, without applying it."""
        return ConfigCheck(await self._daemon.problems())
