"""When is an engine ready? When the socket is ours, it is healthy, and it accepts our secret and no other; one that
reports itself healthy without a model, only when it has answered a tiny request.

Asks and waits, decides nothing else; may be cancelled at any point. The secret goes only to a socket that is proven
ours.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Final

from msgspec import Struct

from accelerd.base.ports import Clock
from accelerd.engines.base import LaunchPlan
from accelerd.engines.http import HttpError, connect, request, unix_peer
from accelerd.supervise.process.processes import ListenerOwner
from accelerd.supervise.proof import BUSY, prove

FIRST_DELAY: Final = 0.01  # s between looks at the start …
LAST_DELAY: Final = 0.25  # … and later: a twentieth of what it took so far, between the two
PROBE_TIMEOUT: Final = 2.0  # s for one answer
PROOF_TIMEOUT: Final = 3600.0  # s for the first word: who loads too long is ended by others
SURE: Final = 3  # times in a row before an answer that cannot be undone is believed


class Readiness(Enum):
    """How waiting ended."""

    READY = "ready"
    FOREIGN = "foreign"  # another program listens there
    KEY_REFUSED = "key-refused"  # our engine does not take the secret it was given
    KEY_IGNORED = "key-ignored"  # our engine takes any key
    WITHOUT_MODEL = "without-model"  # our engine is up and answers no request


class ReadinessResult(Struct, frozen=True):
    """How waiting ended, and what the engine said about it, if anything."""

    verdict: Readiness
    said: str = ""


async def wait_ready(
    plan: LaunchPlan,
    clock: Clock,
    tcp_owner: Callable[[int], Awaitable[ListenerOwner]],
    is_ours: Callable[[int], Awaitable[bool]],
) -> ReadinessResult:
    """Look again and again until the instance is ready or cannot become it. Never times out by itself.

    `tcp_owner(port)` and `is_ours(pid)` know the processes of the instance.
    """
    began = clock.monotonic()
    # Who publishes a container's port is none of its processes.
    owned, foreign, refused = not plan.guarded, 0, 0
    while True:
        if not owned:
            owner = await _owner(plan, tcp_owner, is_ours)
            owned = owner is ListenerOwner.OURS
            foreign = foreign + 1 if owner is ListenerOwner.FOREIGN else 0
            if foreign >= SURE:
                return ReadinessResult(Readiness.FOREIGN)
        if owned:
            try:
                outcome = await _ask(plan)
                if plan.prove and outcome is not None and outcome.verdict is Readiness.READY:
                    outcome = await _proven(plan)
            except HttpError:
                outcome = None  # an engine that loads may refuse, hang up or be silent
            if outcome is not None and outcome.verdict in (Readiness.KEY_REFUSED, Readiness.WITHOUT_MODEL):
                refused += 1
                if refused < SURE:
                    outcome = None
            if outcome is not None:
                return outcome
        delay = (clock.monotonic() - began) / 20
        await asyncio.sleep(min(max(delay, FIRST_DELAY), LAST_DELAY))


async def _proven(plan: LaunchPlan) -> ReadinessResult | None:
    """The tiny request, once, however long its answer takes: asked twice, it would stand in its queue twice."""
    code, refusal = await prove(plan, within=PROOF_TIMEOUT)
    if code == BUSY:
        return None
    return ReadinessResult(Readiness.WITHOUT_MODEL, refusal) if refusal else ReadinessResult(Readiness.READY)


async def _owner(
    plan: LaunchPlan,
    tcp_owner: Callable[[int], Awaitable[ListenerOwner]],
    is_ours: Callable[[int], Awaitable[bool]],
) -> ListenerOwner:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            sock = await connect(plan.endpoint)
    except (OSError, TimeoutError):
        return ListenerOwner.NOBODY
    try:
        if plan.endpoint.port is not None:
            return await tcp_owner(plan.endpoint.port)
        return ListenerOwner.OURS if await is_ours(unix_peer(sock)) else ListenerOwner.FOREIGN
    finally:
        sock.close()


async def _ask(plan: LaunchPlan) -> ReadinessResult | None:
    """One round of questions to our own engine; None: not yet. HttpError."""
    if await _status(plan, plan.health_path) != 200:
        return None
    if not plan.keyed:
        return ReadinessResult(Readiness.READY)
    ours = await _status(plan, plan.warm_path, plan.secret)
    if ours in (401, 403):
        return ReadinessResult(Readiness.KEY_REFUSED)
    if ours != 200:
        return None
    if not plan.guarded:
        return ReadinessResult(Readiness.READY)
    # A key that was never given out: an engine that takes it would serve every user of this machine.
    other = await _status(plan, plan.warm_path, secrets.token_hex(16))
    if other == 200:
        return ReadinessResult(Readiness.KEY_IGNORED)
    return ReadinessResult(Readiness.READY) if other in (401, 403) else None


async def _status(plan: LaunchPlan, path: str, bearer: str = "") -> int:
    return (await request(plan.endpoint, path, within=PROBE_TIMEOUT, bearer=bearer, most=0))[0]
