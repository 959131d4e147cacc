"""The place of a model that a server elsewhere runs: an instance that is ready at once, and has no process.

There is nothing to find, to measure, to take over or to end.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause, Exit
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Engine, LaunchPlan
from accelerd.instances import InstanceInfo, Listener
from accelerd.supervise import exit_messages
from accelerd.supervise.process.output import OutputRing
from accelerd.supervise.process.processes import InstanceTag
from accelerd.system.records import event

log = logging.getLogger(__name__)


class InstanceElsewhere:
    """The shape of an Instance."""

    loading = None
    line_from = 0

    def __init__(
        self,
        number: int,
        spec: ModelSpec,
        engine: Engine,
        tag: InstanceTag,
        ring: OutputRing,
        listener: Listener,
        started: float,
    ) -> None:
        self.number = number
        self.spec = spec
        self.tag = tag
        self.ring = ring
        self._engine = engine
        self._listener = listener
        self._started = started
        self._plan: LaunchPlan | None = None
        self._ended: asyncio.Future[Cause] = asyncio.get_running_loop().create_future()

    def stop(self, cause: Cause, message: str = "") -> None:
        if not self._ended.done():
            self._ended.set_result(cause)

    def kill(self) -> None:
        self.stop(Cause.STOPPED)

    def probe(self, *, thorough: bool) -> None:
        """Nobody asks for it: only requests tell whether a remote works."""
        self._listener.instance_probed(self.number, True)

    def facts(self) -> InstanceInfo:
        return InstanceInfo(self.spec.name, None, self._started, self._plan)

    async def run(self) -> Exit:
        try:
            self._plan = plan = await self._engine.plan(self.spec, Path(), None)
        except AccelError as error:
            return exit_messages.refused(error, ())
        except Exception:
            text = f"a bug in accelerd: {self.spec.name} cannot be asked for"
            event(log, logging.ERROR, text, message_id=names.MSG_BUG, model=self.spec.name, exc_info=True)
            return Exit(Cause.SPAWN_FAILED, "cannot use the model: a bug in accelerd, see its log")
        if not self._ended.done():
            self._listener.instance_ready(self.number, plan.endpoint, plan.secret)
        return Exit(await self._ended, f"{self.spec.name} was stopped")
