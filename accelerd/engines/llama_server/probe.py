"""How to find out whether a llama-server works without costing a client the prompt that a slot has cached.

A request takes the slot that was used least recently, and with it what is cached there; GET /slots says of each whether
it is at work and how much it holds. A slot in which decoding has failed is empty: so there the proof costs nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

import msgspec
from msgspec import Struct

from accelerd.engines.base import LaunchPlan
from accelerd.engines.http import HttpTimeout, request

PATH: Final = "/slots"
MOST_BYTES: Final = 4 << 20
WITHIN: Final = 30.0  # s for one answer: some builds give none while they decode
STALLED: Final = 60.0  # s without any progress of any slot
EVERY: Final = 1.0  # s
WORTHLESS: Final = 16  # tokens in a cache that nobody misses


class Slot(Struct):
    """What GET /slots says of one slot. Builds differ; what is missing is not known."""

    id: int
    is_processing: bool = False
    id_task: int = -1  # of the last one; -1: there was none
    n_prompt_tokens: int | None = None  # that it holds
    n_prompt_tokens_processed: int = 0
    next_token: msgspec.Raw = msgspec.Raw(b"")

    @property
    def spare(self) -> bool:
        """Does nobody lose anything if it is used?"""
        held = self.n_prompt_tokens
        return not self.is_processing and (self.id_task < 0 if held is None else held < WORTHLESS)


SLOTS: Final = msgspec.json.Decoder(list[Slot])


async def slots(plan: LaunchPlan) -> list[Slot] | None:
    """None: this build does not say. HttpError."""
    key = plan.secret if plan.keyed else ""
    status, data = await request(plan.endpoint, PATH, within=WITHIN, bearer=key, most=MOST_BYTES)
    try:
        return SLOTS.decode(data) if status == 200 else None
    except msgspec.MsgspecError:
        return None


async def harmless(plan: LaunchPlan, *, thorough: bool, stalled: float = STALLED) -> LaunchPlan | None:
    """The plan to probe it by; None: it works as far as can be seen without a slot. HttpError: it does not."""
    found = await slots(plan)
    if found is None:
        return plan
    if (spare := next((slot for slot in found if slot.spare), None)) is not None:
        body = {"prompt": " ", "max_tokens": 1, "id_slot": spare.id, "cache_prompt": False}
        return replace(plan, probe_body=msgspec.json.encode(body))
    if not all(slot.is_processing for slot in found):
        return plan if thorough and plan.prompt_cache else None
    loop = asyncio.get_running_loop()
    deadline = loop.time() + stalled
    while loop.time() < deadline:
        await asyncio.sleep(EVERY)
        if await slots(plan) != found:
            return None
    raise HttpTimeout(f"none of its {len(found)} slots makes progress")
