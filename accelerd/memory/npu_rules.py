"""The rules of NPUs, as data: who may compute there beside whom, how many hardware contexts there are, who makes room.

A model is *on an NPU* when its need has a Claim; on whatever else it is placed beside that. Pure: judges claims and
ids, knows neither processes nor a scheduler.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from accelerd.devices.model import Device
from accelerd.memory.model import Claim, MemoryRequirement, Pool

# Families that may compute on an NPU while one of this family does; what is not listed has the NPU for itself.
# From lemonade-sdk/lemonade src/cpp/server/router.cpp, evict_all_npu_servers and SlotPolicy (11.7). Three `flm serve`
# ran at once on a Strix Halo (noamsto/nix-amd-ai#79): the driver shares the NPU's time.
FAMILIES: Final[Mapping[str, frozenset[str]]] = {
    "flm": frozenset({"flm"}),
    "ryzenai-llm": frozenset(),
    "whispercpp": frozenset(),
}

# Hardware contexts that the driver makes for all programs together, by PCI id. From amd/xdna-driver
# drivers/accel/amdxdna/*_regs.c, hwctx_limit (2.21.75). That the firmware has no room for one more can come earlier:
# three models failed on a Krackan with CREATE_HWCTX -22 (FastFlowLM#655). Columns limit nothing from npu4 on: every
# context has all of them, one after the other.
CONTEXTS: Final[Mapping[tuple[str, str], int]] = {
    ("1022", "1502"): 6,  # npu1: Phoenix, Hawk Point
    ("1022", "17f0"): 16,  # revision 10 npu4 Strix Point, 11 npu5 Strix Halo, 20 npu6 Krackan: all the same
}

NPU_ENGINES: Final = frozenset({"flm"})  # that run nothing anywhere else


def contexts(device: Device) -> int | None:
    """How many hardware contexts there are on an NPU for all programs; None: not known, taken for no limit."""
    return CONTEXTS.get((device.vendor, device.device)) if device.kind == "npu" else None


def conflict(a: Claim, b: Claim) -> str | None:
    """Why the two cannot be on an NPU together, one clause; None: they can, or are on different ones. Symmetric."""
    if a.device != b.device:
        return None
    if b.family not in FAMILIES.get(a.family, ()) or a.family not in FAMILIES.get(b.family, ()):
        if a.family == b.family:
            return f"{a.family} has the NPU for itself, one model at a time"
        return f"{a.family} and {b.family} cannot use the NPU at the same time"
    if a.host and a.host == b.host and a.kind == b.kind:
        return f"{a.host} holds one {a.family} model of the kind {a.kind} at a time"
    return None


def clash(a: MemoryRequirement, b: MemoryRequirement) -> str | None:
    """Why two models placed like this cannot be resident together, as far as NPUs decide it."""
    return next((why for one in a.claims for other in b.claims if (why := conflict(one, other))), None)


def on_npu(need: MemoryRequirement) -> bool:
    return bool(need.claims)


def first_device(need: MemoryRequirement) -> str:
    """What a model placed like this works on first: of both a GPU and an NPU the GPU; "": nothing was decided."""
    claimed = {claim.device for claim in need.claims}
    return next((id for id in (*(id for id in need.devices if id not in claimed), *need.devices)), "")


def apart(a: MemoryRequirement, b: MemoryRequirement) -> bool:
    """Is one on an NPU, and the other not? Then `max_loaded` counts them apart; memory that both use they share."""
    return on_npu(a) != on_npu(b)


# --- contexts -------------------------------------------------------------------------------------------------


def claimed(needs: Iterable[MemoryRequirement], device: str) -> int:
    """Hardware contexts of a device that these take together."""
    return sum(claim.contexts for need in needs for claim in need.claims if claim.device == device)


def lacking(
    need: MemoryRequirement, others: Iterable[MemoryRequirement], pools: Iterable[Pool]
) -> Iterator[tuple[Pool, int, int]]:
    """(pool, contexts asked of it, contexts that others have) where they are too many together."""
    others = list(others)
    for pool in pools:
        wanted = claimed((need,), pool.id)
        if wanted and pool.contexts is not None:
            taken = claimed(others, pool.id)
            if taken + wanted > pool.contexts:
                yield pool, wanted, taken
