"""`python -m tests.bench.complexity`: microseconds of CPU to find the tier of a prompt, and the prompt in a body.

By the prompts of tests/routing/tiers/natural.txt, with the built-in words. Of several rounds the quickest counts: what
else runs on the machine only adds.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Final

from accelerd.config.complexity import ComplexitySettings
from accelerd.routing.asks import last_ask
from accelerd.routing.complexity import Classifier
from tests.routing.tiers import cases

ROUNDS: Final = 30
CALLS: Final = 200
GOAL: Final = 20.0  # µs for a usual prompt


def microseconds(call: Callable[[], object]) -> float:
    def once() -> float:
        begin = time.thread_time()
        for _ in range(CALLS):
            call()
        return (time.thread_time() - begin) / CALLS * 1e6

    return min(once() for _ in range(ROUNDS))


def body(prompt: str) -> bytes:
    """A conversation with a system prompt and an answer before it, as clients send them."""
    system, answer = "You are a helpful assistant. " * 20, "That is what I have found out about it. " * 30
    roles = (("system", system), ("user", "hello"), ("assistant", answer), ("user", prompt))
    return json.dumps(
        {"model": "smart", "messages": [{"role": role, "content": text} for role, text in roles]}
    ).encode()


def main() -> None:
    classifier = Classifier(ComplexitySettings())
    prompts = sorted(cases.natural(), key=len)
    judged = [microseconds(lambda prompt=prompt: classifier.classify(prompt)) for prompt in prompts]  # type: ignore[misc]
    bodies = [body(prompt) for prompt in prompts]
    asked = [microseconds(lambda one=one: last_ask(one)) for one in bodies]  # type: ignore[misc]
    middle = statistics.median(judged)
    length = statistics.median(map(len, prompts))
    print(f"{len(prompts)} prompts of {len(prompts[0])} to {len(prompts[-1])} characters, the median {length:.0f}")
    verdict = "ok" if middle <= GOAL else "MISS"
    print(f"tier:    median {middle:.1f} µs, the longest {judged[-1]:.1f} µs  {verdict}, ≤ {GOAL:.0f}")
    size = statistics.median(map(len, bodies))
    print(f"message: median {statistics.median(asked):.1f} µs, of bodies of {size:.0f} bytes")


if __name__ == "__main__":
    main()
