"""The proof that an engine works: its one tiny request, and whether the answer is one.

Asks once and judges; how often, and what follows, is decided elsewhere. What an engine answered is shown to people only
where it says why it refuses, never where it may be a model's words.
"""

from __future__ import annotations

import json
from typing import Any, Final

from accelerd.engines.base import LaunchPlan
from accelerd.engines.http import ANSWER_BYTES, request

BUSY: Final = 503  # it is overloaded, which says nothing about its model
SAID: Final = 200  # letters of a refusal


async def prove(plan: LaunchPlan, *, within: float) -> tuple[int, str]:
    """The status, and why the answer is none; "" when it is one, or BUSY from who must prove itself. HttpError.

    `within` seconds.
    """
    code, body = await request(
        plan.endpoint,
        plan.probe_path,
        within=within,
        bearer=plan.secret if plan.keyed else "",
        body=plan.probe_body,
        kind=plan.probe_type,
        most=ANSWER_BYTES if plan.prove else 0,
    )
    if code == BUSY and plan.prove:
        return code, ""
    if code != 200:
        return code, f"status {code} to {plan.probe_path}" + _because(_parsed(body))
    if not plan.prove:
        return code, ""
    # Some engines answer 200 with an error: {"error": …}, or null.
    said = _parsed(body)
    if said is None or (isinstance(said, dict) and "error" in said):
        return code, f"no answer to {plan.probe_path}" + _because(said)
    return code, ""


def _parsed(body: bytes) -> Any:
    """What is no JSON is taken for text."""
    try:
        return json.loads(body)
    except ValueError:
        return body


def _because(said: Any) -> str:
    error = said.get("error") if isinstance(said, dict) else None
    text = error.get("message") if isinstance(error, dict) else error
    return f": {' '.join(text.split())[:SAID]}" if isinstance(text, str) and text.strip() else ""
