"""When is an engine ready? When the socket is ours, it is healthy, and it accepts our secret and no other; one that
reports itself healthy without a model, only when it has answered a tiny request.

`Loading` waits for that until it is ready, cannot become it, or has taken too long without progress; it ends nothing
and may be cancelled at any point. The secret goes only to a socket that is proven ours. What an engine answered is
shown to people only where it says why it refuses, never where it may be a model's words.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from accelerd.base.decoding import from_json
from accelerd.base.exits import Cause
from accelerd.base.ports import Clock
from accelerd.engines.base import Endpoint, LaunchPlan
from accelerd.engines.http import ANSWER_BYTES, HttpError, connect, request, unix_peer
from accelerd.memory.resident import resident, taken_in
from accelerd.supervise.exit_messages import program
from accelerd.supervise.process.output import OutputRing
from accelerd.supervise.process.processes import ListenerOwner, tcp_owner
from accelerd.supervise.waiting import SupervisorLimits, race

FIRST_DELAY: Final = 0.01  # s between looks at the start …
LAST_DELAY: Final = 0.25  # … and later: a twentieth of what it took so far, between the two
PROBE_TIMEOUT: Final = 2.0  # s for one answer
PROOF_TIMEOUT: Final = 3600.0  # s for the first word: who loads too long is ended by others
SURE: Final = 3  # times in a row before an answer that cannot be undone is believed


class Outcome(Struct, frozen=True):
    """How waiting ended: why the instance is to be ended; `cause` None: it is ready."""

    cause: Cause | None = None
    message: str = ""


READY: Final = Outcome()


async def wait_ready(
    plan: LaunchPlan,
    clock: Clock,
    tcp_owner: Callable[[int], Awaitable[ListenerOwner]],
    is_ours: Callable[[int], Awaitable[bool]],
) -> Outcome:
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
                return Outcome(Cause.PORT_UNAVAILABLE, f"another program listens at {plan.endpoint}")
        if owned:
            try:
                outcome = await _ask(plan)
                if plan.prove and outcome is READY:
                    outcome = await _proven(plan)
            except HttpError:
                outcome = None  # an engine that loads may refuse, hang up or be silent
            if outcome is not None and outcome is not READY:
                refused += 1
                if refused < SURE:
                    outcome = None
            if outcome is not None:
                return outcome
        delay = (clock.monotonic() - began) / 20
        await asyncio.sleep(min(max(delay, FIRST_DELAY), LAST_DELAY))


async def _proven(plan: LaunchPlan) -> Outcome | None:
    """The tiny request, once, however long its answer takes: asked twice, it would stand in its queue twice."""
    code, refusal = await prove(plan, within=PROOF_TIMEOUT)
    if code == BUSY:
        return None
    if not refusal:
        return READY
    text = f"{program(plan)} is up, but without its model ({plan.model}): {refusal}"
    if code == NOT_FOUND and plan.not_found_hint:
        return Outcome(Cause.NO_MODEL, f"{text}; {plan.not_found_hint}")
    return Outcome(Cause.WITHOUT_MODEL, text)


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


async def _ask(plan: LaunchPlan) -> Outcome | None:
    """One round of questions to our own engine; None: not yet. HttpError."""
    if await _status(plan, plan.health_path) != plan.health_status:
        return None
    if not plan.keyed:
        return READY
    ours = await _status(plan, plan.warm_path, plan.secret)
    if ours in (401, 403):
        text = "refuses the key that accelerd gave it; remove --api-key from extra_args and env"
        return Outcome(Cause.REFUSED, f"{program(plan)} {text}")
    if ours != 200:
        return None
    if not plan.guarded:
        return READY
    # A key that was never given out: an engine that takes it would serve every user of this machine.
    key = secrets.token_hex(16)
    other = await _status(plan, plan.warm_path, key)
    if other == 200 and plan.guard is not None:
        path, body = plan.guard
        other = (await request(plan.endpoint, path, within=PROBE_TIMEOUT, bearer=key, body=body, most=0))[0]
    if other == 200:
        text = "answers to any key: every user of this machine could use it; this build cannot be used"
        return Outcome(Cause.REFUSED, f"{program(plan)} {text}")
    return READY if other in (401, 403) else None


async def listens(endpoint: Endpoint) -> bool:
    """Does anybody?"""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            (await connect(endpoint)).close()
    except (OSError, TimeoutError):
        return False
    return True


async def _status(plan: LaunchPlan, path: str, bearer: str = "") -> int:
    return (await request(plan.endpoint, path, within=PROBE_TIMEOUT, bearer=bearer, most=0))[0]


class Loading:
    """One instance on its way to readiness. `pids` are its live processes."""

    def __init__(
        self,
        plan: LaunchPlan,
        main: int,
        pids: Callable[[], Awaitable[list[int]]],
        *,
        ring: OutputRing,
        clock: Clock,
        limits: SupervisorLimits,
        proc: Path,
        timeout: float,
        settle: Callable[[], Awaitable[LaunchPlan]] | None = None,
    ) -> None:
        """`timeout`: seconds without progress. `settle`: waits until it is known where it listens; the plan
        with that."""
        self._settle = settle
        self.resident: int | None = None  # bytes, as seen last …
        self.peak: int | None = None  # … and at most
        self.taken_in: int | None = None  # bytes of files, read or mapped; None: not to be had
        self._plan = plan
        self._main = main
        self._pids = pids
        self._ring = ring
        self._clock = clock
        self._limits = limits
        self._proc = proc
        self._timeout = timeout

    async def run(self) -> Outcome:
        """PORT_UNAVAILABLE: another program listens at its endpoint."""
        raced = await race(self._until_ready(), self._out_of_patience())
        assert raced is not None
        outcome: Outcome = raced[1]
        return outcome

    async def _until_ready(self) -> Outcome:
        if self._settle is not None:
            self._plan = await self._settle()
        return await wait_ready(self._plan, self._clock, self._owner, self._is_ours)

    async def _owner(self, port: int) -> ListenerOwner:
        return await asyncio.to_thread(tcp_owner, self._proc, port, await self._pids())

    async def _is_ours(self, pid: int) -> bool:
        return pid == self._main or pid in await self._pids()

    async def _out_of_patience(self) -> Outcome:
        """Returns when loading took too long without progress, or far too long."""
        clock, limits, timeout = self._clock, self._limits, self._timeout
        step = min(max(timeout / 8, 0.02), 1.0)
        began = progress = clock.monotonic()
        printed, peak = self._ring.total, 0
        while True:
            await asyncio.sleep(step)
            held, taken = await asyncio.to_thread(_look, self._proc, await self._pids())
            if taken is not None:
                self.taken_in = max(taken, self.taken_in or 0)
            self.resident = held
            self.peak = max(held, self.peak or 0)
            now = clock.monotonic()
            if self._ring.total > printed or held > peak + limits.growth:
                printed, peak, progress = self._ring.total, max(peak, held), now
            text = f"not ready {now - began:.1f} s after its start"
            if now - progress >= timeout:
                return Outcome(Cause.LOAD_TIMEOUT, f"{text}, no progress for {timeout:g} s")
            if now - began >= limits.load_cap * timeout:
                return Outcome(Cause.LOAD_TIMEOUT, f"{text}, although it made progress all the time")


def _look(proc: Path, pids: list[int]) -> tuple[int, int | None]:
    """Bytes resident, and bytes of files taken in. Blocking."""
    return resident(proc, pids), taken_in(proc, pids)


NOT_FOUND: Final = 404
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
        return from_json(body)
    except ValueError:
        return body


def _because(said: Any) -> str:
    error = said.get("error") if isinstance(said, dict) else None
    text = error.get("message") if isinstance(error, dict) else error
    return f": {' '.join(text.split())[:SAID]}" if isinstance(text, str) and text.strip() else ""
