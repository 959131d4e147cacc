"""The promises of test_properties once more, of models that are used, idle and sleep most of the time."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from accelerd.scheduler.lifecycle import State
from tests.scheduler.test_properties import SLEEPY, World


class Sleepers(World):
    """Processes that mostly do at once what they are told."""

    @initialize(budget=st.sampled_from([9, 12]), max_loaded=st.sampled_from([None, 1]), group=st.booleans())
    def begin(self, budget: int, max_loaded: int | None, group: bool) -> None:
        super().begin(budget, max_loaded, None, group, None, False)
        self._look()

    @rule(name=st.sampled_from((*SLEEPY, "d")))
    def use(self, name: str) -> None:
        request = self.bench.request(name)
        self.requests.append(request)
        self.go_on()
        if request.lease is not None:
            self.end_one(request.model)

    def end_one(self, name: str) -> None:
        request = next(one for one in self.holders() if one.model == name)
        self.bench.end(request)
        self.requests.remove(request)

    @rule()
    def idle(self) -> None:
        self.bench.pass_time(31.0)
        self.go_on()

    def go_on(self) -> None:
        """Every process does what it was told."""
        bench = self.bench
        for _ in range(20):
            before = len(bench.log)
            for snapshot in bench.core.snapshots():
                name = snapshot.spec.name
                if snapshot.state is State.STARTING:
                    bench.ready(name)
                elif snapshot.state is State.WAKING:
                    bench.woke(name)
                elif snapshot.state is State.OFFLOADING and snapshot.instance in bench.sleeping:
                    bench.slept(name)
                elif snapshot.state in (State.STOPPING, State.KILLING):
                    bench.gone(name)
            self._look()
            bench.pass_time(1.0)
            if len(bench.log) == before:
                break


TestSleepers = Sleepers.TestCase
TestSleepers.settings = settings(max_examples=100, stateful_step_count=30)
