"""Measures one running llama-server: prompts in, tokens out, at the rates that the server itself reports.

The prompt is made of the model's own tokens and begins differently each time, so that no cache helps; the answer goes
on past its end. Knows nothing of models or leases, and asks one server at its endpoint.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import msgspec
from msgspec import Struct

from accelerd.base.decoding import from_json
from accelerd.engines.base import Endpoint
from accelerd.engines.http import HttpError, request
from accelerd.tuning.search import RateSeries

PATIENCE: Final = 1800.0  # s for one request: a large model on a slow processor takes minutes
ANSWER_BYTES: Final = 8 << 20  # it repeats the prompt
PROSE: Final = (
    "the river runs below a town where people build boats and sell fish when winter comes they mend nets tell stories "
    "about storms count coins write letters to daughters who live far away learn new songs bake bread keep bees argue "
    "over prices measure timber paint doors plant trees teach children watch stars repair clocks"
)


Post = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]  # path, JSON


class MeterError(Exception):
    """The server could not be measured. One clause."""


class MeterLoad(Struct, frozen=True):
    """How much is asked of a server."""

    prompt: int  # tokens
    answer: int
    repeats: int


def load_for(context: int | None, *, quick: bool) -> MeterLoad:
    """What fits a request's context."""
    room = context or 4096
    answer = min(64 if quick else 128, room // 4)
    return MeterLoad(min(512 if quick else 2048, room - answer - 16), answer, 3 if quick else 5)


def text(words: int) -> str:
    """Something like prose, always the same."""
    known = PROSE.split()
    return " ".join(known[(i * i * 7 + i * 13 + i // 11) % len(known)] for i in range(words))


async def measure(
    endpoint: Endpoint, secret: str, load: MeterLoad, step: Callable[[int], None]
) -> tuple[RateSeries, RateSeries]:
    """Rates of prompt and answer. `step(n)` before the n-th repeat, 0 is the warm-up. MeterError."""
    prompts: list[float] = []
    answers: list[float] = []
    post = partial(_post, endpoint, secret)
    tokens = await _tokens(post, load.prompt)
    step(0)
    await _complete(post, tokens[: max(1, load.prompt // 8)], min(8, load.answer))
    for number in range(1, load.repeats + 1):
        step(number)
        prompt, answer = await _complete(post, tokens[number:] + tokens[:number], load.answer)
        prompts.append(prompt)
        answers.append(answer)
    return RateSeries(tuple(prompts)), RateSeries(tuple(answers))


async def _tokens(post: Post, count: int) -> list[int]:
    """So many tokens of the model's vocabulary."""
    answer = await post("/tokenize", {"content": text(count)})
    tokens = answer.get("tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, int) for token in tokens):
        raise MeterError("it does not say how it splits a text into tokens")
    return (tokens * (count // len(tokens) + 1))[:count]


async def _complete(post: Post, prompt: list[int], answer: int) -> tuple[float, float]:
    """Rates of one request."""
    asked = {"prompt": prompt, "n_predict": answer, "cache_prompt": False, "ignore_eos": True, "temperature": 0.0}
    timings = (await post("/completion", asked)).get("timings")
    rates = [timings.get(key) if isinstance(timings, dict) else None for key in ("prompt_per_second",
                                                                               "predicted_per_second")]  # fmt: skip
    first, second = rates
    if not isinstance(first, int | float) or not isinstance(second, int | float) or first <= 0 or second <= 0:
        raise MeterError("it does not say how fast it was")
    return float(first), float(second)


async def _post(endpoint: Endpoint, secret: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    try:
        status, data = await request(
            endpoint, path, within=PATIENCE, bearer=secret, body=msgspec.json.encode(body), most=ANSWER_BYTES
        )
        if status != 200:
            raise MeterError(f"it answered {path} with status {status}: {data[:200].decode('utf-8', 'replace')}")
        return from_json(data, dict[str, Any])
    except HttpError as error:
        raise MeterError(str(error)) from error
    except msgspec.MsgspecError as error:
        raise MeterError(f"its answer to {path} is not JSON") from error
