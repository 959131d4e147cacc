"""Asks a server elsewhere that could not be reached whether it can be again, while its models cool down.

The question is for its list of models, which makes no server load one. A model whose server answers may be tried by the
next request, before the time of its cooling is over. Nobody is asked while nothing cools down.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec
from accelerd.engines.remote.remotes import Remotes
from accelerd.routing.health import Health, HealthState

log = logging.getLogger(__name__)

EVERY: Final = 5.0  # s


class HealthChecks:
    """One for each model that cools down."""

    def __init__(self, health: Health, remotes: Remotes, every: float = EVERY) -> None:
        self._health = health
        self._remotes = remotes
        self._every = every
        self._checks: dict[str, asyncio.Task[None]] = {}

    def begin(self, spec: ModelSpec, error: AccelError) -> None:
        """A request to the model has failed. One that was answered proves nothing by another answer."""
        cools = self._health.of(spec.name).state is HealthState.COOLING
        if not cools or not spec.elsewhere or "engine_status" in error.fields or spec.name in self._checks:
            return
        task = asyncio.create_task(self._check(spec), name=f"health of {spec.name}")
        self._checks[spec.name] = task
        task.add_done_callback(lambda _: self._checks.pop(spec.name, None))

    async def _check(self, spec: ModelSpec) -> None:
        while True:
            await asyncio.sleep(self._every)
            if self._health.of(spec.name).state is not HealthState.COOLING:
                return
            try:
                state = await self._remotes.look(spec.remote or "")
            except AccelError:  # it is configured no more
                return
            if state.reachable:
                log.info("%s: %s can be reached again", spec.name, spec.remote)
                self._health.reachable(spec.name)
                return

    def close(self) -> None:
        for task in self._checks.values():
            task.cancel()
