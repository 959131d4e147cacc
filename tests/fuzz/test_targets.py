"""The corpus of the fuzzer, whole and damaged: nothing but refusals that a parser promises."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.targets import TARGETS, seeds

ROUNDS = 30


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_and_what_is_near_it(target: str) -> None:
    chance = random.Random(5)
    found = seeds(target)
    assert found
    for data in found:
        TARGETS[target](data)
        for _ in range(ROUNDS):
            damaged = bytearray(data[: chance.randint(0, len(data))])
            for _ in range(chance.randint(0, 4)):
                damaged.insert(chance.randint(0, len(damaged)), chance.randrange(256))
            TARGETS[target](bytes(damaged))
