"""How many requests wait inside an engine that batches them: read from its metrics while it has requests, else never.

Routes ask for the last figure; nobody waits for a new one. Only engines whose plan names such a metric are asked.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

from accelerd.base.events import EventStream
from accelerd.engines.base import LaunchPlan
from accelerd.engines.http import HttpError, request
from accelerd.scheduler.events import ModelInUse

EVERY: Final = 1.0  # s between two readings; what is shorter than that costs none
PATIENCE: Final = 2.0  # s for an answer
MOST: Final = 4 << 20  # bytes of metrics


class EngineQueues:
    """Subscribes to models in use. All methods on the event loop's thread."""

    def __init__(
        self, plan_of: Callable[[str], LaunchPlan | None], events: EventStream, *, every: float = EVERY
    ) -> None:
        """`plan_of(model)`: of its instance; None: there is none."""
        self._plan_of = plan_of
        self._every = every
        self._waiting: dict[str, int] = {}
        self._readers: dict[str, asyncio.Task[None]] = {}
        events.subscribe(ModelInUse, self.on_model_in_use)

    def waiting(self, model: str) -> int:
        """Requests that its engine had no room for, as of the last reading."""
        return self._waiting.get(model, 0)

    def on_model_in_use(self, event: ModelInUse) -> None:
        name = event.spec.name
        if not event.in_use:
            self._waiting.pop(name, None)
            if (reader := self._readers.pop(name, None)) is not None:
                reader.cancel()
        elif name not in self._readers and (plan := self._plan_of(name)) is not None and plan.queue_metric is not None:
            self._readers[name] = asyncio.get_running_loop().create_task(
                self._read(name, plan), name=f"queue of {name}"
            )

    async def _read(self, name: str, plan: LaunchPlan) -> None:
        assert plan.queue_metric is not None
        path, metric = plan.queue_metric
        while True:
            await asyncio.sleep(self._every)
            try:
                status, body = await request(plan.endpoint, path, within=PATIENCE, bearer=plan.secret, most=MOST)
                self._waiting[name] = total(body, metric) if status == 200 else 0
            except HttpError:
                self._waiting.pop(name, None)  # not known: its requests will tell what is wrong


def total(exposition: bytes, metric: str) -> int:
    """The sum of a gauge over its labels, in Prometheus' text format."""
    found = 0.0
    for line in exposition.decode(errors="replace").splitlines():
        name, _, rest = line.partition("{")
        labelled = name == metric and "}" in rest
        text = rest.rpartition("}")[2] if labelled else line[len(metric) + 1 :] if line.startswith(f"{metric} ") else ""
        try:
            value = float(text.split()[0]) if text.split() else 0.0
        except ValueError:
            continue
        if math.isfinite(value):
            found += value
    return max(0, int(found))
