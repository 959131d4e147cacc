"""Whatever happens in whatever order: the promises that the scheduler never breaks, searched by hypothesis.

No lease on a model that is not ready; no eviction under a lease; no double load; the ledger within its limit and never
negative; no pool overdrawn by a start, a sleep or a wake-up; nothing started where memory was given up; what is held
leaves for nobody but people; nobody starves; every waiter is answered exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec, SchedulerSettings
from accelerd.memory.model import RAM, Forecast, MemoryRequirement, MemorySnapshot, Pool
from accelerd.scheduler.events import ModelTransition
from accelerd.scheduler.lifecycle import OCCUPIED, Event, State
from accelerd.scheduler.placement import SharedLimits
from tests.scheduler.bench import MIB, Bench, Request, model

NAMES = ("a", "b", "c", "d")
CAUSES = (Cause.OOM_KILLED, Cause.EXITED, Cause.SIGNALED, Cause.NO_MODEL, Cause.SPAWN_FAILED, Cause.LOAD_TIMEOUT)
names = st.sampled_from(NAMES)
CARD, APU = "card", "apu"
PLACES = {"a": (RAM,), "b": (CARD, APU), "c": (CARD,), "d": (APU,)}  # where each model may be, the best first
SLEEPY = ("b", "c")  # they can sleep on the card, with so much in main memory:
WEIGHTS = 2 * MIB
LONGEST_WAIT = 4 * 20.0 + 70.0  # s: the bound on overtaking, once for each model, and the longest back-off


class Books(Bench):
    """A bench that checks every start against the pools, and why models leave."""

    def on_transition(self, event: ModelTransition) -> None:
        super().on_transition(event)
        transition = event.transition
        leaves = transition.event in (Event.DRAIN, Event.STOP) and transition.before is State.READY
        if leaves and any(s.spec.name == event.spec.name and s.unevictable for s in self.core.snapshots()):
            # Neither another model, nor pressure, nor idleness: only people, a hung engine, a new configuration.
            assert not transition.reason.startswith(("made room", "other requests waited", "idle", "a game")), (
                transition
            )

    def start(self, instance: int, spec: ModelSpec, devices: Sequence[str] = ()) -> None:
        super().start(instance, spec, devices)
        self.check(self.placed[spec.name])
        limit = self.limits.memory  # later, models may be seen to use more than when they were counted
        assert limit is None or self.core.memory_held() <= limit, "a start overdrew the limit"

    def sleep(self, instance: int) -> None:
        super().sleep(instance)
        ram = [balance for balance in self.core.memory.ledger().balances() if balance.pool.id == RAM]
        assert all(balance.free >= 0 for balance in ram), "the weights overdrew main memory"

    def wake(self, instance: int) -> None:
        super().wake(instance)
        self.check(self.core._admission.instances[instance].need)

    def check(self, need: MemoryRequirement) -> None:
        for balance in self.core.memory.ledger().balances():
            spills = any(size and balance.pool.id == RAM for id, size in need.amounts.items() if id == APU)
            assert balance.free >= 0 or not (need.amounts.get(balance.pool.id) or spills), "a start overdrew a pool"
        yielded = self.core.memory.yielded
        assert yielded is None or not yielded.covers(need), "started where memory was given up"


class World(RuleBasedStateMachine):
    """Clients, people and processes doing anything at any time."""

    @initialize(
        budget=st.integers(4, 12),
        max_loaded=st.sampled_from([None, 1, 2]),
        pinned=st.sampled_from([None, "a"]),
        group=st.booleans(),
        exclusive=st.sampled_from([None, "d"]),
        slow_pools=st.booleans(),
    )
    def begin(
        self,
        budget: int,
        max_loaded: int | None,
        pinned: str | None,
        group: bool,
        exclusive: str | None,
        slow_pools: bool,
    ) -> None:
        specs = [
            model(
                name,
                parallel=2,
                pin=name == pinned,
                exclusive=name == exclusive,
                group="g" if group and name in "bc" else None,
                idle_timeout=30.0,
                sleep_timeout=40.0 if name == "c" else None,
            )
            for name in NAMES
        ]
        memory = {"a": 1 * MIB, "b": 2 * MIB, "c": 3 * MIB, "d": 4 * MIB}
        self.rules = SchedulerSettings(
            max_queue=12, queue_timeout=500.0, max_failures=3, failure_window=50.0, memory_wait=450.0, cool_down=5.0
        )
        forecasts = {
            name: Forecast(
                tuple(MemoryRequirement({place: memory[name]}, "test", (place,)) for place in PLACES[name]),
                asleep={RAM: WEIGHTS} if name in SLEEPY else None,
            )
            for name in NAMES
        }
        self.bench = Books(specs, self.rules, SharedLimits(budget * MIB, "test", max_loaded), forecasts=forecasts)
        self.foreign = {RAM: 0, CARD: 0, APU: 0}
        self.bench.slow_pools = slow_pools
        self.requests: list[Request] = []
        self.unloads = 0
        self.unloaded = 0
        self.held: set[tuple[str, str]] = set()

    def holders(self) -> list[Request]:
        return [r for r in self.requests if r.lease and r.lease in r.lease.record.active]

    # --- clients ---

    @rule(name=names)
    def request(self, name: str) -> None:
        self.requests.append(self.bench.request(name))

    @precondition(lambda self: any(r.lease is None and r.error is None for r in self.requests))
    @rule(data=st.data())
    def go_away(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from([r for r in self.requests if r.lease is None and r.error is None]))
        assert request.waiter is not None
        self.bench.core.cancel(request.model, request.waiter)
        self.requests.remove(request)

    @precondition(lambda self: self.holders())
    @rule(data=st.data(), ok=st.sampled_from([True, False, None]))
    def end(self, data: st.DataObject, ok: bool | None) -> None:
        request = data.draw(st.sampled_from(self.holders()))
        self.bench.end(request, ok)
        self.requests.remove(request)

    # --- people ---

    @rule(name=names, may_evict=st.booleans())
    def request_load(self, name: str, may_evict: bool) -> None:
        self.bench.request_load(name, may_evict=may_evict)

    @rule(name=names, force=st.booleans())
    def unload(self, name: str, force: bool) -> None:
        self.unloads += 1
        self.bench.core.begin_unload(name, force=force, done=self._count_unload, failed=lambda _: self._count_unload())

    def _count_unload(self) -> None:
        self.unloaded += 1

    @rule(name=names, key=st.sampled_from(["x", "y"]), load=st.booleans())
    def hold(self, name: str, key: str, load: bool) -> None:
        before = self.bench.core.snapshot(name).holds
        refused = ""
        try:
            self.bench.core.holds.hold(name, key, load=load)
            self.held.add((name, key))
        except AccelError as error:
            refused = error.code
        assert refused in ("", "pin_conflict", "does_not_fit")
        assert not refused or self.bench.core.snapshot(name).holds == before

    @rule(name=names, key=st.sampled_from(["x", "y"]))
    def let_go(self, name: str, key: str) -> None:
        assert self.bench.core.holds.unhold(name, key) is ((name, key) in self.held)
        self.held.discard((name, key))

    @rule(name=names)
    def abandon(self, name: str) -> None:
        before = self.bench.core.snapshot(name)
        stopped = self.bench.core.holds.abandon(name, "cancelled")
        assert not stopped or (before.state is State.STARTING and not before.queue and not before.unevictable)

    @rule(name=names)
    def reset(self, name: str) -> None:
        self.bench.core.reset(name)

    # --- processes ---

    @rule(name=names)
    def become_ready(self, name: str) -> None:
        if self.bench.state(name) is State.STARTING:
            self.bench.ready(name)

    @rule(name=names, trouble=st.sampled_from(["", "", "no pinned memory"]))
    def fall_asleep(self, name: str, trouble: str) -> None:
        if self.bench.state(name) is State.OFFLOADING and self.bench.instance(name) in self.bench.sleeping:
            self.bench.slept(name, trouble)

    @rule(name=names, trouble=st.sampled_from(["", "", "out of memory"]))
    def wake_up(self, name: str, trouble: str) -> None:
        if self.bench.state(name) is State.WAKING:
            self.bench.woke(name, trouble)

    @rule(name=names, cause=st.sampled_from(CAUSES))
    def end_by_itself(self, name: str, cause: Cause) -> None:
        state = self.bench.state(name)
        if state in OCCUPIED and state is not State.RECLAIMING:
            stopping = state in (State.STOPPING, State.KILLING)
            self.bench.gone(name, Cause.STOPPED if stopping else cause)

    @rule(name=names, fits=st.booleans(), asleep=st.booleans())
    def be_left_by_an_earlier_daemon(self, name: str, fits: bool, asleep: bool) -> None:
        if self.bench.core.placement(name)[1] == "it fits beside what is loaded now":
            stopped = self.bench.state(name) is State.STOPPED
            asleep = asleep and name in SLEEPY
            assert self.bench.core.adopt(name, "found", fits=fits, asleep=asleep) is stopped

    @precondition(lambda self: self.bench.waited_for)
    @rule(data=st.data(), size=st.sampled_from([0, 0, MIB // 2]))
    def give_memory_back(self, data: st.DataObject, size: int) -> None:
        self.bench.back(data.draw(st.sampled_from(sorted(self.bench.waited_for))), size)

    @rule()
    def sleep_and_wake(self) -> None:
        self.bench.core.devices.slept()

    @rule(name=names)
    def need_a_kill(self, name: str) -> None:
        if self.bench.state(name) in OCCUPIED - {State.KILLING, State.RECLAIMING}:
            self.bench.core.instance_killing(self.bench.instance(name))

    @rule(name=names, ok=st.booleans())
    def answer_a_probe(self, name: str, ok: bool) -> None:
        instance = self.bench.core.snapshot(name).instance
        if instance in self.bench.probed:
            self.bench.core.instance_probed(instance, ok)

    @rule(seconds=st.sampled_from([0.1, 0.6, 5.0, 21.0, 61.0]))
    def pass_time(self, seconds: float) -> None:
        self.bench.pass_time(seconds)

    # --- memory ---

    @rule(pool=st.sampled_from([RAM, CARD, APU]), size=st.integers(0, 6), used=st.integers(0, 12), kept=st.booleans())
    def look(self, pool: str, size: int, used: int, kept: bool) -> None:
        self.foreign[pool] = size * MIB
        self._look(used, kept)

    def _look(self, used: int = 0, kept: bool = False) -> None:
        """`kept`: what sleeps still has the memory of its device."""
        core, foreign = self.bench.core, self.foreign
        pools = (
            Pool(RAM, "main memory", 16 * MIB, MIB, foreign[RAM]),
            Pool(CARD, "a card", 6 * MIB, 0, foreign[CARD]),
            Pool(APU, "part of the processor", 12 * MIB, 0, foreign[APU], backed_by=RAM, own=MIB),
        )
        seen = {s.instance: {pool: size * used // 12 for pool, size in s.need.amounts.items()}
                for s in core.snapshots() if s.instance is not None}  # fmt: skip
        for instance in seen:
            record = core._admission.instances[instance]
            if (record.asleep or record.slept_at is not None) and not kept:
                seen[instance] = {RAM: WEIGHTS}
        self.bench.events.publish(MemorySnapshot(self.bench.clock.now, pools, seen))

    @rule(pool=st.sampled_from([RAM, CARD, APU]), size=st.integers(1, 8), busy=st.booleans())
    def press(self, pool: str, size: int, busy: bool) -> None:
        before = {s.spec.name for s in self.bench.core.snapshots() if s.state is State.DRAINING}
        self.bench.core.memory.make_room(pool, size * MIB, "a game", busy=busy)
        for snapshot in self.bench.core.snapshots():
            if snapshot.state is State.DRAINING and snapshot.spec.name not in before:
                assert busy, "only hard pressure touches a model that works"

    @rule(pools=st.sampled_from([None, frozenset({CARD}), frozenset({CARD, APU})]), now=st.booleans(),
          seconds=st.sampled_from([None, 30.0]))  # fmt: skip
    def give_up(self, pools: frozenset[str] | None, now: bool, seconds: float | None) -> None:
        until = self.bench.clock.now + seconds if seconds else None
        self.bench.core.memory.yield_memory(pools, until, "a person", now=now)

    @rule()
    def resume(self) -> None:
        self.bench.core.memory.resume()

    # --- promises ---

    @invariant()
    def leases_are_of_ready_or_draining_models(self) -> None:
        for request in self.holders():
            assert self.bench.state(request.model) in (State.READY, State.DRAINING, State.STOPPING, State.KILLING)
        for snapshot in self.bench.core.snapshots():
            assert 0 <= snapshot.leases <= snapshot.spec.slots
            if snapshot.state not in OCCUPIED:
                assert snapshot.leases == 0

    @invariant()
    def the_ledger_holds(self) -> None:
        occupied = [s for s in self.bench.core.snapshots() if s.state in OCCUPIED]
        held = self.bench.core.memory_held()
        limits = self.bench.limits
        lost = sum(r.size for r in self.bench.core.residues if not r.waited_for)
        assert held == sum(sum(s.held.values()) for s in occupied) + lost
        assert held >= 0
        awake = [s for s in occupied if not self.bench.core._admission.records[s.spec.name].asleep]
        assert limits.max_loaded is None or len(awake) <= limits.max_loaded
        if any(s.spec.exclusive for s in awake):
            assert len(awake) == 1
        assert len([s for s in awake if s.spec.group]) <= 1

    @invariant()
    def every_model_has_at_most_one_instance(self) -> None:
        live = [s.instance for s in self.bench.core.snapshots() if s.instance is not None]
        assert len(live) == len(set(live)) == len(self.bench.core._admission.instances)

    @invariant()
    def nothing_was_evicted_under_a_lease(self) -> None:
        """Only people who force it, an unhealthy engine or a crash end a request; a swap never does."""
        for name, before, after in self.bench.log[-8:]:
            assert (before, after) != (State.READY, State.STARTING), name

    @invariant()
    def memory_that_is_not_back_is_named(self) -> None:
        """Every instance whose memory is waited for is in a model's RECLAIMING or a residue on the ledger, or both."""
        reclaiming = [s for s in self.bench.core.snapshots() if s.state is State.RECLAIMING]
        residues = self.bench.core.residues
        assert len(reclaiming) + len([r for r in residues if not r.waited_for]) == len(self.bench.waited_for)
        assert all(0 < r.size <= r.most for r in residues)
        assert all(s.leases == 0 and s.instance is None for s in reclaiming)

    @invariant()
    def holds_are_those_that_were_asked_for(self) -> None:
        found = {(s.spec.name, key) for s in self.bench.core.snapshots() for key in s.holds}
        assert found == self.held

    @invariant()
    def the_queue_count_is_true(self) -> None:
        assert self.bench.core.queued == sum(s.queue for s in self.bench.core.snapshots())

    def teardown(self) -> None:
        """Let everybody be reasonable from here on: whoever still waits is served soon, and every unload is over."""
        if not hasattr(self, "bench"):
            return
        bench, began = self.bench, self.bench.clock.now
        for name, key in self.held:
            bench.core.holds.unhold(name, key)
        self.foreign = dict.fromkeys(self.foreign, 0)
        bench.core.memory.resume()
        self._look()
        fresh = [r for r in self.requests if r.waiter and r.waiter.arrived > began - 200 and not (r.lease or r.error)]
        while bench.clock.now - began < LONGEST_WAIT:
            for snapshot in bench.core.snapshots():
                name = snapshot.spec.name
                if snapshot.state is State.STARTING:
                    bench.ready(name)
                elif snapshot.state is State.OFFLOADING and snapshot.instance in bench.sleeping:
                    bench.slept(name)
                    self._look()
                elif snapshot.state is State.WAKING:
                    bench.woke(name)
                elif snapshot.state in (State.STOPPING, State.KILLING):
                    bench.gone(name)
                if snapshot.instance in bench.probed:
                    bench.core.instance_probed(snapshot.instance, True)
            for instance in list(bench.waited_for):
                bench.back(instance)
            for request in self.holders():
                bench.end(request)
            if all(r.lease or r.error for r in self.requests) and self.unloads == self.unloaded:
                break
            bench.pass_time(0.25)
        assert all(r.lease or r.error for r in self.requests), "somebody starved"
        assert not [r for r in fresh if r.error and r.error.code == "queue_timeout"], "somebody starved"
        assert self.unloads == self.unloaded, "somebody waits for ever for an unload"


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=300, stateful_step_count=40)
