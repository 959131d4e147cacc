"""Nothing that goes through accelerd is other than what the engine itself says: 300 requests, field by field.

Plain and as streams, of a model with one slot and one with four, the first one cold.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.compare.bodies import Body, bodies
from tests.compare.compare import SLOTS, Pair, pair

GROUPS = {name: list(some) for name, some in itertools.groupby(bodies(), lambda body: body.name.partition(":")[0])}


@pytest.fixture(scope="module")
def both(llama_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pair(tmp_path_factory.mktemp("compare"), llama_server) as found:
        yield found


def test_there_are_enough() -> None:
    assert len(list(bodies())) >= 300
    assert len({body.name for body in bodies()}) == len(list(bodies()))


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("group", GROUPS)
async def test_answers_are_the_engines(both: Pair, group: str, slots: int, stream: bool) -> None:
    wanted: list[Body] = [body for body in GROUPS[group] if body.streams or not stream]
    found = {body.name: await both.compare(body, slots, stream=stream) for body in wanted}
    assert not {name: [str(one) for one in several] for name, several in found.items() if several}
