"""What engines answer with an error, as clients of the path expect it. Pure: bytes in, bytes out.

Errors get the shape, status and code that the API's clients expect, whatever the engine has said: its own JSON, that of
another API, a text or a page.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from accelerd.base.decoding import from_json
from accelerd.base.errors import AccelError, anthropic_type
from accelerd.engines.base import Dialect
from accelerd.gateway.response_framing import Head
from accelerd.gateway.responses import ANTHROPIC, is_ollamas
from accelerd.routing.health import may_go_on

Json = dict[str, Any]
TOO_LONG: Final = "context_length_exceeded"  # the code of errors for a prompt that is too long
NO_DIALECT: Final = Dialect()
MAX_HIDDEN: Final = 64 << 10  # bytes: a longer response with status 200 is not checked for an error
NO_REASON: Final = "no reason given"
MAX_READ: Final = 4 << 10  # bytes of an error that is a text or a page
BESIDE_ERRORS: Final = frozenset(("error", "type", "status", "code", "request_id", "user_id"))
MAX_QUOTED: Final = 400  # characters of an engine's own message that the client gets


def corrected_error(
    status: int, body: bytes, path: str, model: str, dialect: Dialect = NO_DIALECT, trained: int | None = None
) -> tuple[int, bytes]:
    """An engine's error as clients of that path expect it, whatever it has answered with: JSON, text or a page.

    `trained`: see Traits.
    """
    unsaid = f"the engine of {model} has nothing at {path}" if status == 404 and path else NO_REASON
    error = _error_in(body, path) or _error_of(status, body, unsaid)
    message = str(error.get("message"))
    if status == 500 and dialect.request_faults and re.search(dialect.request_faults, message):
        status = 400
        error |= {"code": 400, "type": "invalid_request_error"}
        if dialect.too_large and (found := re.fullmatch(dialect.too_large, message)) is not None:
            text = f"the input has {found[1]} tokens, a batch of this model {found[2]}"
            keys = f"set a larger `ubatch`, `batch` and `context` for {model} in accelerd's configuration"
            error |= {"code": TOO_LONG, "message": f"{text}; for more, {keys}"}
    if dialect.too_long and error.get("type") == dialect.too_long:
        error |= {"code": TOO_LONG, "message": _too_long(error, path, model, trained)}
    for pattern, advice in dialect.advice:
        if re.search(pattern, message):
            error |= {"message": f"{message}; in accelerd's configuration, {advice.replace('{model}', model)}"}
    return status, msgspec.json.encode(shaped(error, status, path))


def failure_of(head: Head, body: bytes, model: str, called: str, dialect: Dialect) -> AccelError | None:
    """The engine's error as that of its model, where another one may answer instead; None: it is the answer.

    `called`: the model's name in the request to the engine.
    """
    # As OpenAI would have it, whatever the client's API: others have no codes.
    lacks = lacks_model(head.status, body, called)
    status, body = corrected_error(head.status, body, "", model, dialect)
    text = f"the engine answered with status {status}: {hidden_error(body) or NO_REASON}"
    if code_of(body) == TOO_LONG:
        return AccelError(TOO_LONG, text, tokens=tokens_in(body))
    if not (may_go_on(status) or lacks):
        return None
    more: dict[str, Any] = {"model_not_found": True} if lacks else {}
    return AccelError("upstream_failed", text, retry_after=head.retry_after, **more, engine_status=status)


def hidden_error(content: bytes) -> str | None:
    """The error in a response with status 200: FastFlowLM sends {"error": …}, and `null` if no model is loaded."""
    content = content.strip() if len(content) <= MAX_HIDDEN else b""
    if content == b"null":
        return "it returned null: no model is loaded for this request"
    if not content.startswith(b"{"):
        return None
    try:
        answer = from_json(content, dict[str, object])
    except msgspec.DecodeError:
        return None
    error = answer.get("error")
    if isinstance(error, dict):
        error = error.get("message", "no reason given")
    return str(error)[:MAX_QUOTED] if error is not None else None


def sole_error(content: bytes) -> str | None:
    """The error in a response with status 200 that has nothing else, as clouds send it that ask others in turn."""
    if len(content) > MAX_HIDDEN or b'"error"' not in content[:MAX_QUOTED]:
        return None
    try:
        answer = from_json(content, dict[str, object])
    except msgspec.DecodeError:
        return None
    if answer.keys() - BESIDE_ERRORS or not isinstance(answer.get("error"), dict | str) or not answer["error"]:
        return None
    return hidden_error(content)


def code_of(body: bytes) -> str | None:
    """The code in an error; None where it has none."""
    code = (_error_in(body, "") or {}).get("code")
    return code if isinstance(code, str) else None


def lacks_model(status: int, body: bytes, name: str) -> bool:
    """Does the error say that the engine has no model of this name, and not that it lacks the path?

    OpenAI and those who follow it have a code for that, or say which parameter is wrong; errors of others name the
    model.
    """
    if status not in (400, 404):
        return False
    try:
        answer = from_json(body, dict[str, Any])
    except msgspec.DecodeError:
        return False
    error = answer.get("error", answer)  # vLLM's is the whole answer, Ollama's a text
    fields = error if isinstance(error, dict) else {"message": error}
    if fields.get("code") == "model_not_found" or status == 400:
        return fields.get("code") == "model_not_found"
    named = rf"""(?:['"`]|\bmodel\b\W{{0,3}}){re.escape(name)}(?!\w)"""
    return fields.get("param") == "model" or bool(name and re.search(named, str(fields.get("message")), re.I))


def tokens_in(body: bytes) -> int:
    """How many tokens the engine has counted in a request that is too long; 0: it does not say."""
    counted = (_error_in(body, "") or {}).get("n_prompt_tokens")
    return counted if isinstance(counted, int) else 0


def _error_in(body: bytes, path: str) -> Json | None:
    try:
        answer = from_json(body, dict[str, Any])
    except msgspec.DecodeError:
        return None
    error = answer.get("error")
    if isinstance(error, str) and is_ollamas(path):
        return {"message": error}
    return error if isinstance(error, dict) else None


def _error_of(status: int, body: bytes, unsaid: str) -> Json:
    """The error in what has not the shape of one: in another field of an object, else the first line of a text."""
    try:
        answer = from_json(body, dict[str, Any])
    except msgspec.DecodeError:
        answer = {}
    told = next((one for key in ("error", "message", "detail") if isinstance(one := answer.get(key), str) and one), "")
    if not (told or answer):
        text = body[:MAX_READ].decode("utf-8", "replace")
        title = re.search(r"<title[^<>]*>([^<>]+)", text, re.I)
        lines = [title[1]] if title is not None else re.sub(r"<[^<>]*>", "\n", text).splitlines()
        told = next((line for line in lines if line.strip()), "")
    message = " ".join(told.split())[:MAX_QUOTED] or unsaid
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"message": message, "type": kind, "param": None, "code": None}


def _too_long(error: Json, path: str, model: str, trained: int | None) -> str:
    text, tokens, limit = error.get("message"), error.get("n_prompt_tokens"), error.get("n_ctx")
    if path.startswith(ANTHROPIC) and tokens and limit:  # Claude Code shortens its conversation when it reads this
        text = f"prompt is too long: {tokens} tokens > {limit} maximum"
    if trained and isinstance(limit, int) and limit >= trained:
        return f"{text}; {model} was trained for no more than {trained}"
    return f"{text}{_for_more('context', model)}"


def _for_more(key: str, model: str) -> str:
    return f"; for more, set a larger `{key}` for {model} in accelerd's configuration"


def shaped(error: Json, status: int, path: str) -> Json:
    if is_ollamas(path):
        return {"error": error.get("message")}
    if path.startswith(ANTHROPIC):
        return {"type": "error", "error": {**error, "type": anthropic_type(status)}}
    return {"error": error}
