"""How a running engine is put to sleep and woken up: by the requests that its plan names, and never on trust."""

from __future__ import annotations

from accelerd.base.decoding import from_json
from accelerd.engines.base import LaunchPlan, SleepPaths
from accelerd.engines.http import HttpError, request

LOOK_TIMEOUT = 10.0  # s for the answer to where its weights are


async def put_to_sleep(plan: LaunchPlan, within: float) -> None:
    """Have its weights moved to main memory. `within` seconds. HttpError."""
    await _move(plan, _paths(plan).sleep, within)
    if not await is_asleep(plan):
        raise HttpError("it says that it is awake after all")


async def wake_up(plan: LaunchPlan, within: float) -> None:
    """Have them moved back. `within` seconds. HttpError."""
    await _move(plan, _paths(plan).wake, within)
    if await is_asleep(plan):
        raise HttpError("it says that it is asleep after all")


async def is_asleep(plan: LaunchPlan) -> bool:
    """HttpError."""
    paths = _paths(plan)
    status, body = await request(plan.endpoint, paths.asleep, within=LOOK_TIMEOUT, bearer=plan.secret)
    if status != 200:
        raise HttpError(f"status {status} to {paths.asleep}")
    try:
        said = from_json(body)
    except ValueError:
        said = None
    found = said.get(paths.field) if isinstance(said, dict) else None
    if not isinstance(found, bool):
        raise HttpError(f"{paths.asleep} does not say whether it is asleep")
    return found


def _paths(plan: LaunchPlan) -> SleepPaths:
    if plan.sleep is None:
        raise HttpError(f"{plan.model} was started without sleep")
    return plan.sleep


async def _move(plan: LaunchPlan, path: str, within: float) -> None:
    status, _ = await request(plan.endpoint, path, within=within, bearer=plan.secret, body=b"", most=0)
    if status != 200:
        raise HttpError(f"status {status} to {path}")
