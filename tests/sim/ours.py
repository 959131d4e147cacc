"""accelerd's own scheduler over a trace: the real Core on the machine of the simulation.

The pools are those of a machine whose GPU shares main memory; what is seen of them is what the machine knows, looked at
when Core asks for it and once a second while others' use changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.base.exits import Cause, Exit
from accelerd.config.machine_settings import MemorySettings
from accelerd.config.model import ModelSpec, SchedulerSettings
from accelerd.engines.base import Endpoint
from accelerd.memory.model import RAM, Claim, Forecast, MemoryRequirement, MemorySnapshot, Pool
from accelerd.memory.pressure import Pressure
from accelerd.memory.reclaim import Changed
from accelerd.scheduler.core import Core
from accelerd.scheduler.events import MemoryNotReturned, ModelTransition
from accelerd.scheduler.placement import SharedLimits
from accelerd.scheduler.record import Lease, Waiter
from tests.sim.machine import SPARE, Machine, Request
from tests.sim.trace import GB, Model

GPU, NPU = "0000:c5:00.0", "0000:c6:00.1"
MADE_ROOM = "made room for "
DESKTOP = 4 * GB  # of main memory, in use by others all day
LOOKING = 0.05  # s that a look takes
WATCH = 1.0  # s between looks by itself …
WATCHED = 90.0  # … for so long after others' use has changed


class Ours:
    """See the module's text."""

    def __init__(
        self, machine: Machine, settings: SchedulerSettings | None = None, npu: frozenset[str] = frozenset()
    ) -> None:
        """`npu`: models that are placed on an NPU, whose memory is the same."""
        self.machine = machine
        self.npu = npu
        self.made_room: list[tuple[str, str]] = []  # (who left, for whom)
        events = EventStream()
        events.subscribe(ModelTransition, self.on_transition)
        events.subscribe(MemoryNotReturned, self.on_memory_not_returned)
        limits = SharedLimits(None, "no limit", None)
        self.core = Core(machine.clock, settings or SchedulerSettings(), limits, events, jitter=lambda: 0.5)
        self.core.attach(self, self, self.look, self)  # type: ignore[arg-type]
        self._pressure = Pressure(MemorySettings())
        self._leases: dict[Request, Lease] = {}
        self._instances: dict[str, int] = {}
        self._tick_at = math.inf
        self._watch_until = -math.inf
        self._watching = False
        self._see()
        specs = [_spec(model) for model in machine.models.values()]
        self.core.configure([(spec, self.estimate_anew(spec)) for spec in specs], self.core.settings, self.core.limits)

    # --- what the machine tells ---

    def request(self, request: Request) -> None:
        def resolve(outcome: Lease | AccelError | None) -> None:
            if isinstance(outcome, Lease):
                self._leases[request] = outcome
                self.machine.serve(request)
            else:
                self.machine.fail(request, outcome.message if outcome is not None else "no lease")

        lease = self.core.acquire(request.model)
        if lease is not None:
            resolve(lease)
        else:
            now = self.machine.now
            self.core.submit(request.model, Waiter(resolve, now, now + self.core.settings.queue_timeout))
        self._arm()

    def served(self, request: Request) -> None:
        self.core.release(self._leases.pop(request), True)
        self._arm()

    def loaded(self, model: str) -> None:
        self.core.instance_ready(self._instances[model], Endpoint(unix="/run/model.sock"), "")
        self._arm()

    def load_failed(self, model: str) -> None:
        self.core.instance_gone(self._instances.pop(model), Exit(Cause.OOM_KILLED, "out of memory"))
        self._arm()

    def unloaded(self, model: str) -> None:
        self.core.instance_gone(self._instances.pop(model), Exit(Cause.STOPPED, "ended"))
        self._arm()

    def foreign_changed(self) -> None:
        self._watch_until = self.machine.now + WATCHED
        if not self._watching:
            self._watching = True
            self._watch()

    # --- looks at memory ---

    def _watch(self) -> None:
        self._see()
        self._watching = self.machine.now < self._watch_until
        if self._watching:
            self.machine.after(WATCH, self._watch)

    def _see(self) -> None:
        machine = self.machine
        capacity = machine.trace.capacity
        gpu = Pool(GPU, "GPU", capacity, foreign=machine.foreign, backed_by=RAM)
        ram = Pool(RAM, "main memory", capacity + DESKTOP + SPARE, SPARE, DESKTOP + machine.foreign)
        npu = Pool(NPU, "NPU", capacity, backed_by=RAM, contexts=16, columns=8)
        used = {
            instance: {NPU if name in self.npu else GPU: machine.held[name]}
            for name, instance in self._instances.items()
            if name in machine.held
        }
        seen = MemorySnapshot(machine.now, (ram, gpu, npu) if self.npu else (ram, gpu), used)
        self.core.memory.seen(seen)
        for order in self._pressure.look(seen, self.core.memory.ledger().balances(), machine.now):
            coming = self.core.memory.make_room(order.pool, order.size, order.why, busy=order.hard)
            self._pressure.answered(order, coming)
        self._arm()

    def _arm(self) -> None:
        """Have Core called again when it wants to be."""
        due = self.core.next_deadline()
        if due < self._tick_at:
            self._tick_at = due
            self.machine.at(due, lambda: self._tick(due))

    def _tick(self, due: float) -> None:
        if due == self._tick_at:
            self._tick_at = math.inf
            self.core.tick()
            self._arm()

    # --- what Core works with ---

    def start(self, instance: int, spec: ModelSpec, devices: Sequence[str] = ()) -> None:
        self._instances[spec.name] = instance
        self.machine.load(spec.name)

    def stop(self, instance: int, reason: Cause = Cause.STOPPED) -> None:
        self.machine.unload(next(name for name, i in self._instances.items() if i == instance))

    def adopt(self, instance: int, spec: ModelSpec, found: object) -> None:
        raise AssertionError("nothing is found here")

    def probe(self, instance: int, *, thorough: bool = False) -> None:
        raise AssertionError("no engine hangs here")

    def watch(self, instance: int, model: str, held: Mapping[str, int], changed: Changed) -> None:
        return  # the machine tells of an end when the memory is back

    def look(self) -> bool:
        self.machine.after(LOOKING, self._see)
        return True

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        return ""

    def on_memory_not_returned(self, event: MemoryNotReturned) -> None:
        raise AssertionError(f"all memory comes back here, not {event.residue}")

    def raise_requirement(self, spec: ModelSpec, need: MemoryRequirement) -> None:
        raise AssertionError(f"no model needs more than is known here: {spec.name}")

    def estimate_anew(self, spec: ModelSpec) -> Forecast:
        size = self.machine.models[spec.name].size
        if spec.name in self.npu:
            return Forecast((MemoryRequirement({NPU: size}, "known", (NPU,), claims=(Claim(NPU, "flm", "llm"),)),))
        return Forecast((MemoryRequirement({GPU: size}, "known"),))

    def record_peak(self, spec: ModelSpec, need: MemoryRequirement, peak: Mapping[str, int]) -> None:
        return

    def device(self, spec: ModelSpec) -> str:
        return NPU if spec.name in self.npu else GPU

    def on_transition(self, event: ModelTransition) -> None:
        reason = event.transition.reason
        if reason.startswith(MADE_ROOM):
            self.made_room.append((event.spec.name, reason.removeprefix(MADE_ROOM).partition(":")[0]))


def _spec(model: Model) -> ModelSpec:
    return ModelSpec(
        model.name, path=f"/models/{model.name}.gguf", parallel=model.parallel, idle_timeout=model.idle_timeout
    )
