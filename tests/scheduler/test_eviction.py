"""Who leaves: the cheapest set of models whose leaving is enough, whatever sizes and uses they have."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from accelerd.config.model import ModelSpec
from accelerd.memory.model import RAM, Forecast, MemoryRequirement, Pool
from accelerd.scheduler.eviction import choose, value
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import SharedLimits, why_not_resident
from accelerd.scheduler.record import ModelRecord
from tests.scheduler.bench import model

GIB = 1 << 30
CARD = "0000:03:00.0"
NOW = 10_000.0


def limits(ram: int = 100, card: int = 24, **more: object) -> SharedLimits:
    pools = (Pool(RAM, "main memory", ram * GIB), Pool(CARD, "a card", card * GIB))
    return SharedLimits(None, "", None, pools=pools, **more)  # type: ignore[arg-type]


def resident(
    name: str, size: int, *, pool: str = RAM, load: float = 10, uses: tuple[float, ...] = (), **more: object
) -> ModelRecord:
    """A loaded model of `size` GiB, used so many seconds ago."""
    forecast = Forecast((MemoryRequirement({pool: size * GIB}, "test"),), load_seconds=load)
    record = ModelRecord(model(name, **more), forecast)
    record.state = State.READY
    for ago in sorted(uses, reverse=True):
        record.usage.note(NOW - ago)
        record.last_used = NOW - ago
    return record


def wanted(size: int, pool: str = RAM) -> ModelRecord:
    return ModelRecord(ModelSpec("new"), Forecast((MemoryRequirement({pool: size * GIB}, "test"),)))


def names(
    target: ModelRecord, candidates: list[ModelRecord], room: SharedLimits, staying: tuple[ModelRecord, ...] = ()
) -> list[str] | None:
    choice = choose(target, staying, candidates, room, NOW)
    return sorted(record.spec.name for record in choice.victims) if choice is not None else None


def test_nobody_leaves_when_there_is_room() -> None:
    assert names(wanted(50), [resident("a", 40)], limits()) == []


def test_one_that_is_seldom_used_leaves_before_a_favourite_that_has_been_idle_longer() -> None:
    favourite = resident("favourite", 40, uses=tuple(range(300, 9000, 300)))
    seldom = resident("seldom", 40, uses=(200,))
    assert names(wanted(50), [favourite, seldom], limits()) == ["seldom"]


def test_one_that_is_quickly_back_leaves_before_one_that_takes_minutes() -> None:
    slow, quick = resident("slow", 40, load=120, uses=(60,)), resident("quick", 40, load=2, uses=(50,))
    assert names(wanted(50), [slow, quick], limits()) == ["quick"]


def test_one_large_model_leaves_rather_than_many_small_ones() -> None:
    small = [resident(f"s{i}", 10, uses=(60,)) for i in range(4)]
    assert names(wanted(40), [*small, resident("large", 40, uses=(60,))], limits(ram=80)) == ["large"]


def test_two_small_ones_that_nobody_uses_leave_rather_than_a_large_one_that_is_used() -> None:
    small = [resident(f"s{i}", 20, load=5) for i in range(2)]
    large = resident("large", 40, load=60, uses=tuple(range(10, 3000, 60)))
    assert names(wanted(40), [large, *small], limits(ram=80)) == ["s0", "s1"]


def test_a_model_on_another_pool_is_left_alone() -> None:
    card = resident("card", 20, pool=CARD)
    ram = resident("ram", 60, load=600, uses=(1, 2, 3))
    assert names(wanted(60), [card, ram], limits()) == ["ram"]


def test_none_when_all_would_not_be_enough() -> None:
    assert names(wanted(101), [resident("a", 40)], limits()) is None
    assert names(wanted(60), [resident("a", 40)], limits(), (resident("pinned", 50),)) is None


def test_models_of_one_group_leave_for_each_other_whatever_they_are_worth() -> None:
    grouped = resident("grouped", 1, load=600, uses=(1, 2, 3), group="g")
    target = ModelRecord(model("new", group="g"), Forecast((MemoryRequirement({RAM: GIB}, "test"),)))
    assert names(target, [grouped, resident("other", 10)], limits()) == ["grouped"]


sizes = st.lists(
    st.tuples(st.integers(1, 30), st.sampled_from([RAM, CARD]), st.integers(1, 200), st.integers(1, 5000),
              st.sampled_from([0, 0, 1])),
    max_size=6,
)  # fmt: skip


@settings(max_examples=300)
@given(loaded=sizes, size=st.integers(1, 60), pool=st.sampled_from([RAM, CARD]), foreign=st.integers(0, 30))
def test_enough_leave_nobody_for_nothing_and_no_single_model_or_pair_would_be_cheaper(
    loaded: list[tuple[int, str, int, int, int]], size: int, pool: str, foreign: int
) -> None:
    pools = (Pool(RAM, "main memory", 100 * GIB, foreign=foreign * GIB), Pool(CARD, "a card", 100 * GIB))
    room = SharedLimits(None, "", None, pools=pools)
    records = [
        resident(f"m{i}", s, pool=p, load=load, uses=(ago,), priority=priority)
        for i, (s, p, load, ago, priority) in enumerate(loaded)
    ]
    target = wanted(size, pool)
    choice = choose(target, (), records, room, NOW)

    def enough(leaving: tuple[ModelRecord, ...]) -> bool:
        return why_not_resident(target, [r for r in records if r not in leaving], room) is None

    if choice is None:
        assert not enough(tuple(records))
        return
    victims = choice.victims
    assert enough(victims)
    assert all(not enough(tuple(v for v in victims if v is not one)) for one in victims), "nobody leaves for nothing"

    def cost(leaving: tuple[ModelRecord, ...]) -> tuple[int, float]:
        return max(r.spec.priority for r in leaving), sum(value(r, NOW) for r in leaving)

    if victims:
        others = [s for n in (1, 2) for s in combinations(records, n) if enough(s)]
        assert all(cost(victims) <= (p, v + 1e-9) for p, v in map(cost, others))
