"""Answers a request for more answers (`n`) than its model has slots: with one after the other, as if they were one.

llama-server refuses such a request. With the cache of its slot the prompt is computed once all the same. Knows bodies
and events only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from accelerd.base.decoding import from_json
from accelerd.base.errors import AccelError
from accelerd.gateway.stream_events import SeveralAnswers, event_of

Json = dict[str, Any]
UNKNOWN: Final = (msgspec.DecodeError, KeyError, TypeError)  # what is no answer in OpenAI's shape
RANDOM_SEED: Final = (1 << 32) - 1  # llama-server's word for none


def bodies_of(body: bytes, count: int, seed: int | None) -> Iterator[bytes]:
    """A request for each answer. `seed`: of the model's settings; each answer gets its own, as the engine does it."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    for name in ("n", "n_cmpl"):
        fields.pop(name, None)
    asked = msgspec.json.decode(fields["seed"]) if "seed" in fields else None
    first = seed if asked is None else asked
    for number in range(count):
        if number and isinstance(first, int) and 0 <= first < RANDOM_SEED:
            fields["seed"] = msgspec.Raw(b"%d" % (first + number))
        yield msgspec.json.encode(fields)


def joined(answers: Sequence[bytes]) -> bytes:
    """Plain responses as one, with the usage of the first as llama-server has it. AccelError upstream_failed."""
    if len(answers) == 1:
        return answers[0]
    try:
        whole = [from_json(answer, dict[str, Any]) for answer in answers]
        choices = [choice for answer, one in enumerate(whole) for choice in _numbered(one, answer, len(whole))]
    except UNKNOWN:
        raise AccelError("upstream_failed", "the engine answered with no choices") from None
    whole[0]["choices"] = sorted(choices, key=lambda choice: int(choice["index"]))
    return msgspec.json.encode(whole[0])


def listed(answers: Sequence[bytes]) -> bytes:
    """Plain responses of llama-server's own as one. AccelError upstream_failed."""
    if len(answers) == 1:
        return answers[0]
    try:
        whole = [from_json(answer, dict[str, Any]) for answer in answers]
    except UNKNOWN:
        raise AccelError("upstream_failed", "the engine answered with no object") from None
    return msgspec.json.encode([{**one, **({"index": n} if "index" in one else {})} for n, one in enumerate(whole)])


def _numbered(event: Json, answer: int, count: int) -> list[Json]:
    """Its choices, one for each prompt, with the numbers that they have among all answers to all prompts."""
    return [{**choice, "index": choice["index"] * count + answer} for choice in event["choices"]]


class JoinedStreams(SeveralAnswers):
    """Streams, one after the other, as one: the choices are numbered, the response has one id and one end."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count
        self._answer = 0
        self._id: Any = None

    @property
    def more(self) -> bool:
        """Is this not the last stream?"""
        return self._answer + 1 < self._count

    def next(self) -> None:
        """The next stream follows."""
        self._answer += 1

    def corrected(self, event: bytes) -> bytes | None:
        if not event.startswith(b"data: {"):
            return None if self.more and event == b"data: [DONE]" else super().corrected(event)
        try:
            data = from_json(event[6:], dict[str, Any])
            if "error" in data:
                self._count = 0  # it is the last
                return event
            choices = _numbered(data, self._answer, self._count)
        except UNKNOWN:
            return event
        self._id = self._id or data.get("id")
        return super().corrected(event_of({**data, "choices": choices, "id": self._id})[:-2])
