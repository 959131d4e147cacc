"""Whatever happens in whatever order, of models on an NPU, on a GPU and in main memory: the NPU's rules hold.

The claims of what is resident never conflict; contexts are never overdrawn; max_loaded counts each kind for itself;
main memory, which all of them share, is never promised twice; whoever waits is served or refused.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from accelerd.base.exits import Cause
from accelerd.config.model import SchedulerSettings
from accelerd.memory.model import RAM, Claim, Forecast, MemoryRequirement, MemorySnapshot, Pool
from accelerd.memory.npu_rules import FAMILIES, claimed, clash, on_npu
from accelerd.scheduler.lifecycle import OCCUPIED, State
from accelerd.scheduler.placement import SharedLimits
from tests.scheduler.bench import MIB, Bench, Request, model

NPU, APU = "npu", "apu"
ON_NPU, ON_GPU, IN_RAM = ("n1", "n2", "n3", "n4"), ("g1", "g2"), ("r1",)
NAMES = (*ON_NPU, *ON_GPU, *IN_RAM)
names = st.sampled_from(NAMES)
CONTEXTS = 4
claims = st.builds(
    Claim,
    device=st.just(NPU),
    family=st.sampled_from([*FAMILIES, "unheard of"]),
    kind=st.sampled_from(["llm", "asr", "embed"]),
    contexts=st.integers(1, 3),
    host=st.sampled_from(["", "Lemonade server"]),
)


class World(RuleBasedStateMachine):
    """Clients, processes and other programs doing anything at any time, where main memory is all there is."""

    @initialize(
        max_loaded=st.sampled_from([None, 1, 2]),
        budget=st.sampled_from([None, 6, 9]),
        claims=st.lists(claims, min_size=len(ON_NPU), max_size=len(ON_NPU)),
        sizes=st.lists(st.integers(1, 5), min_size=len(NAMES), max_size=len(NAMES)),
        in_pool=st.booleans(),
        pinned=st.sampled_from([None, None, "n1", "g1"]),
    )
    def begin(
        self,
        max_loaded: int | None,
        budget: int | None,
        claims: list[Claim],
        sizes: list[int],
        in_pool: bool,
        pinned: str | None,
    ) -> None:
        forecasts = {}
        for name, size in zip(NAMES, sizes, strict=True):
            if name in ON_NPU:
                claim = claims[ON_NPU.index(name)]
                need = MemoryRequirement({NPU if in_pool else RAM: size * MIB}, "test", (NPU,), claims=(claim,))
            elif name in ON_GPU:
                need = MemoryRequirement({APU: size * MIB}, "test", (APU,))
            else:
                need = MemoryRequirement({RAM: size * MIB}, "test")
            forecasts[name] = Forecast((need,))
        rules = SchedulerSettings(
            max_queue=20, queue_timeout=1e6, max_failures=3, memory_wait=30.0, cool_down=5.0, min_resident=0
        )
        specs = [model(name, parallel=2, idle_timeout=300.0, pin=name == pinned) for name in NAMES]
        limits = SharedLimits(budget * MIB if budget else None, "test", max_loaded)
        self.bench = Bench(specs, rules, limits, forecasts=forecasts)
        self.foreign = 0
        self.requests: list[Request] = []
        self._look()

    def _look(self) -> None:
        pools = (
            Pool(RAM, "main memory", 12 * MIB, MIB, self.foreign),
            Pool(APU, "a GPU", 10 * MIB, 0, backed_by=RAM, own=MIB),
            Pool(NPU, "an NPU", 12 * MIB, 0, backed_by=RAM, contexts=CONTEXTS),
        )
        self.bench.core.memory.seen(MemorySnapshot(self.bench.clock.now, pools, {}))

    def holders(self) -> list[Request]:
        return [r for r in self.requests if r.lease and r.lease in r.lease.record.active]

    @rule(name=names)
    def request(self, name: str) -> None:
        self.requests.append(self.bench.request(name))

    @rule(name=names, may_evict=st.booleans())
    def request_load(self, name: str, may_evict: bool) -> None:
        self.bench.request_load(name, may_evict=may_evict)

    @precondition(lambda self: self.holders())
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.holders()))
        self.bench.end(request)
        self.requests.remove(request)

    @rule(name=names)
    def become_ready(self, name: str) -> None:
        if self.bench.state(name) is State.STARTING:
            self.bench.ready(name)

    @rule(name=names, cause=st.sampled_from([Cause.EXITED, Cause.OOM_KILLED]))
    def go(self, name: str, cause: Cause) -> None:
        state = self.bench.state(name)
        if state in OCCUPIED and state is not State.RECLAIMING:
            self.bench.gone(name, Cause.STOPPED if state in (State.STOPPING, State.KILLING) else cause)

    @rule(name=names, force=st.booleans())
    def unload(self, name: str, force: bool) -> None:
        self.bench.core.begin_unload(name, force=force, done=lambda: None)

    @rule(seconds=st.sampled_from([0.6, 5.0, 21.0, 61.0]))
    def pass_time(self, seconds: float) -> None:
        self.bench.pass_time(seconds)

    @rule(size=st.integers(0, 8))
    def look(self, size: int) -> None:
        self.foreign = size * MIB
        self._look()

    @invariant()
    def claims_never_overlap_against_the_rules(self) -> None:
        there = [s for s in self.bench.core.snapshots() if s.state in OCCUPIED]
        needs = [s.need for s in there]
        for i, a in enumerate(needs):
            assert all(clash(a, b) is None for b in needs[:i])
        assert claimed(needs, NPU) <= CONTEXTS

    @invariant()
    def each_kind_is_counted_for_itself(self) -> None:
        most = self.bench.limits.max_loaded
        there = [on_npu(s.need) for s in self.bench.core.snapshots() if s.state in OCCUPIED]
        assert most is None or max(there.count(True), there.count(False)) <= most

    @invariant()
    def main_memory_is_not_promised_twice(self) -> None:
        """Of what was admitted: 11 MiB are there for models."""
        there = [s for s in self.bench.core.snapshots() if s.state in OCCUPIED]
        assert sum(size for s in there for size in s.need.amounts.values()) <= (11 + 1) * MIB  # 1: the GPU's own

    def teardown(self) -> None:
        """From here on everybody is reasonable: each request is served or refused, whatever the other kind does."""
        if not hasattr(self, "bench"):
            return
        bench, began = self.bench, self.bench.clock.now
        self.foreign = 0
        self._look()
        while bench.clock.now - began < 600 and not all(r.lease or r.error for r in self.requests):
            for snapshot in bench.core.snapshots():
                if snapshot.state is State.STARTING:
                    bench.ready(snapshot.spec.name)
                elif snapshot.state in (State.STOPPING, State.KILLING):
                    bench.gone(snapshot.spec.name)
            for request in self.holders():
                bench.end(request)
            bench.pass_time(0.5)
            self._look()
        assert all(r.lease or r.error for r in self.requests), "somebody starved"
        assert not [r for r in self.requests if r.error and r.error.code == "queue_timeout"], "somebody starved"


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=150, stateful_step_count=40)
