"""What the suites share: a check is a function of a target; its result, without what differs by nature, is compared.

A suite runs in the clients' own environment, where neither accelerd nor its tests can be imported. It gets its targets
from $CLIENT_TARGETS and prints a line of JSON for each check of each target. `cold` is an address that unloads all
models when it is read.
"""

from __future__ import annotations

import inspect
import json
import os
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

KEY = "sk-dummy"
CHAT, EMBED, RERANK = "chat", "embed", "rerank"
# what differs between two answers to one question
BY_NATURE = {
    "id", "created", "created_at", "completed_at", "call_id", "item_id", "tool_call_id", "response_id", "timings",
    "system_fingerprint", "prompt_tokens_details", "input_tokens_details", "input_token_details", "run_id",
    "cache_read_input_tokens", "x_request_id", "_request_id",
}  # fmt: skip
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "where"}},
    "required": ["city"],
    "additionalProperties": False,
}
PIXEL = (  # a picture of one
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)


@dataclass(frozen=True)
class Target:
    name: str
    root: str  # of the chat model, without /v1
    embed: str
    rerank: str
    cold: str | None

    @property
    def url(self) -> str:
        return f"{self.root}/v1"


Check = Callable[[Target], Any]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


def plain(value: Any) -> Any:
    """A client's object as JSON, without what differs by nature. Tokens from the cache count like all others."""
    for method in ("model_dump", "to_dict", "dict"):
        if not isinstance(value, (dict, type)) and hasattr(value, method):
            return plain(getattr(value, method)())
    if isinstance(value, dict):
        if cached := value.get("cache_read_input_tokens"):
            value = value | {"input_tokens": value["input_tokens"] + cached}
        return {str(k): plain(v) for k, v in value.items() if k not in BY_NATURE and v is not None}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return round(value, 4)
    return value if isinstance(value, (str, int, bool)) or value is None else str(value)


def failure(error: BaseException) -> dict[str, Any]:
    """What a program can tell of an error: its class, status, code and type."""
    seen: dict[str, Any] = {"error": type(error).__name__}
    for name in ("status_code", "code", "type", "param"):
        if isinstance(found := getattr(error, name, None), (str, int)):
            seen[name] = found
    return seen


def refused(call: Callable[[], Any]) -> dict[str, Any]:
    """What a call that must fail raises."""
    try:
        answer = call()
    except Exception as error:
        return failure(error)
    raise AssertionError(f"it was answered: {str(plain(answer))[:300]}")


def main() -> None:
    for target in [Target(**one) for one in json.loads(os.environ["CLIENT_TARGETS"])]:
        for function in CHECKS:
            if target.cold:
                urllib.request.urlopen(target.cold, timeout=60).read()
            line: dict[str, Any] = {"target": target.name, "check": function.__name__, "ok": True}
            try:
                seen = function(target)
                if inspect.isawaitable(seen):
                    seen = run(seen)
                line["seen"] = plain(seen)
            except Exception as error:
                line |= {"ok": False, "seen": failure(error), "says": f"{type(error).__name__}: {error}"[:600]}
            print(json.dumps(line), flush=True)


def run(awaitable: Any) -> Any:
    import asyncio

    async def whole() -> Any:
        return await awaitable

    return asyncio.run(whole())
