"""OpenAI's Responses API: what a response and its events have, where an engine leaves fields out. Pure.

A response repeats what was asked for; events have numbers, and those of items say which. What the engine says itself
stays as it is, except that an answer cut at its limit is not said to be complete.
"""

from __future__ import annotations

import secrets
import time
from typing import Any, Final

import msgspec

from accelerd.base.decoding import from_json
from accelerd.config.model import Sampling
from accelerd.engines.base import Dialect
from accelerd.gateway.stream_events import Json, WholeEvents, decoded, event_of

# What a response has, beside what its engine says: what it repeats of the request, and what it says where that says
# nothing.
REPEATED: Final[Json] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "truncation": "disabled",
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "temperature": None,
    "top_p": None,
}
OURS: Final[Json] = {
    "error": None,
    "incomplete_details": None,
    "completed_at": None,
    "usage": None,
    "background": False,
    "service_tier": "default",
    "store": False,
}
SAMPLED: Final = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
FUNCTION: Final[Json] = {"description": None, "parameters": None, "strict": None}
DETAILS: Final = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
CALL_DONE: Final = "response.function_call_arguments.done"
TEXTS: Final = ("response.output_text.", "response.content_part.", "response.reasoning_text.", "response.refusal.")
DEFAULTS: Final[Json] = {**OURS, **REPEATED}  # of a response to a request that is not known


def repeated_of(body: bytes, sampling: Sampling, dialect: Dialect) -> Json:
    """What the response to a request with this body has. `sampling`: of the model's settings."""
    usual = {"temperature": dialect.temperature, "top_p": dialect.top_p}
    set_here = {name: value for name in SAMPLED if (value := getattr(sampling, name)) is not None}
    try:
        asked = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        said = {name: value for name in REPEATED if (value := from_json(asked.get(name, b"null"), Any)) is not None}
    except msgspec.DecodeError:  # the engine says what is wrong with it
        said = {}
    whole = {**DEFAULTS, **usual, **set_here, **said}
    if isinstance(whole["tools"], list):
        whole["tools"] = [{**FUNCTION, **tool} if _is_function(tool) else tool for tool in whole["tools"]]
    for name in ("reasoning", "text"):
        if isinstance(whole[name], dict):
            whole[name] = {**REPEATED[name], **whole[name]}
    return whole


def _is_function(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type") == "function"


def whole_response(body: bytes, repeated: Json) -> bytes:
    """A plain response with every field that there must be."""
    try:
        response = from_json(body, dict[str, Any])
    except msgspec.DecodeError:
        return body
    return msgspec.json.encode(_ended({**repeated, **response})) if response.get("object") == "response" else body


def _ended(response: Json) -> Json:
    """With the details of its usage, and why it is incomplete if its engine does not say so."""
    usage, most = response["usage"], response["max_output_tokens"]
    if not isinstance(usage, dict):
        return response
    response["usage"] = {**DETAILS, **usage}
    if response.get("status") == "completed":
        if response["completed_at"] is None:
            response["completed_at"] = int(time.time())
        if isinstance(most, int) and usage.get("output_tokens", 0) >= most:
            cut = {"reason": "max_output_tokens"}
            response |= {"status": "incomplete", "incomplete_details": cut, "completed_at": None}
    return response


class ResponsesCorrection(WholeEvents):
    """The Responses API's events: numbers of events and items, whole responses, ends of calls, errors."""

    def __init__(self, model: str, repeated: Json = DEFAULTS) -> None:
        super().__init__()
        self._number = 0  # of the next event
        self._items: dict[str, int] = {}  # id → output_index
        self._response: Json = {
            **repeated,
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "model": model,
            "output": [],
        }

    def corrected(self, event: bytes) -> bytes:
        data = decoded(event)
        kind = data.get("type")
        if kind is None and isinstance(data.get("error"), dict):  # it has failed
            return self.failed(data)[:-2]
        if not isinstance(kind, str):
            return event  # a comment
        if isinstance(data.get("response"), dict):
            data["response"] = self._whole(data["response"])
            if kind == "response.completed" and data["response"].get("status") == "incomplete":
                data["type"] = "response.incomplete"
        item = data.get("item")
        before = b""
        if isinstance(item, dict):
            data["output_index"] = self._index(item.get("id"))
            if kind == "response.output_item.done" and item.get("type") == "function_call":
                done = {"type": CALL_DONE, "item_id": item.get("id"), "output_index": data["output_index"],
                        "name": item.get("name"), "arguments": item.get("arguments")}  # fmt: skip
                before = self._numbered(done)
        elif "item_id" in data:
            data["output_index"] = self._index(data["item_id"])
            if kind.startswith(TEXTS):
                data.setdefault("content_index", 0)
                if kind.startswith("response.output_text."):
                    data.setdefault("logprobs", [])
            if kind == "response.content_part.added" and isinstance(data.get("part"), dict):
                data["part"] = {"annotations": [], "logprobs": [], **data["part"]}
        return before + self._numbered(data)[:-2]

    def failed(self, body: Json) -> bytes:
        error = body["error"]
        code, message = str(error.get("code")), error.get("message")
        failed = {**self._response, "status": "failed", "error": {"code": code, "message": message}}
        events = b"" if self._number else self._numbered({"type": "response.created", "response": self._response})
        events += self._numbered({"type": "error", "code": code, "message": message, "param": error.get("param")})
        return events + self._numbered({"type": "response.failed", "response": failed})

    def _whole(self, response: Json) -> Json:
        """With every field that there must be. The first has the id and time of all."""
        self._response = _ended({**self._response, **response, "created_at": self._response["created_at"]})
        return self._response

    def _index(self, item: Any) -> int:
        return self._items.setdefault(str(item), len(self._items))

    def _numbered(self, data: Json) -> bytes:
        data["sequence_number"] = self._number
        self._number += 1
        return event_of(data, data["type"])
