"""The pools as JSON, as docs/control.md describes them, and back: what is shown is enough to reckon with. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from accelerd.memory.ledger import ENDED, Balance, Holding, Ledger, Phase
from accelerd.memory.model import Claim, ForeignUser, MemorySnapshot, Pool

NAMED: Final = 5  # others' processes that are named of a pool

Facts = Callable[[str], Mapping[str, Any]]  # what else is told of a model that holds memory, by its name


def nothing(model: str) -> Mapping[str, Any]:
    """The Facts of whoever knows no models."""
    return {}


def report(ledger: Ledger, seen: MemorySnapshot, facts: Facts = nothing) -> dict[str, Any]:
    """Who holds what, and whether programs wait for memory."""
    return {
        "pools": [_pool(balance, seen.foreign, facts, ledger.holdings) for balance in ledger.balances()],
        "stall": {"some": seen.stall.some, "full": seen.stall.full} if seen.stall is not None else None,
    }


def _pool(
    balance: Balance, foreign: Iterable[ForeignUser], facts: Facts, holdings: Iterable[Holding]
) -> dict[str, Any]:
    pool = balance.pool
    claims = [_claim(held, claim) for held in holdings for claim in held.claims if claim.device == pool.id]
    npu = {
        "contexts": pool.contexts,
        "contexts_used": sum(claim["contexts"] for claim in claims),
        "columns": pool.columns,
        "models": claims,
    }
    named = [user for user in foreign if user.pool == pool.id][:NAMED]
    return {
        "id": pool.id,
        "label": pool.label,
        "capacity": pool.capacity,
        "reserve": pool.reserve,
        "backed_by": pool.backed_by,
        "own": pool.own,
        "foreign": balance.foreign,
        "foreign_users": [{"pid": user.pid, "process": user.process, "size": user.size} for user in named],
        "spilled": balance.spilled,
        "free": balance.free,
        "holdings": [
            {"model": held.model, "phase": held.phase, "reserved": held.size, "used": held.used, **facts(held.model)}
            for held in balance.holdings
        ],
        **({"npu": npu} if claims or pool.contexts is not None or pool.columns is not None else {}),
    }


def _claim(held: Holding, claim: Claim) -> dict[str, Any]:
    """A place on an NPU, with all memory of the model that has it."""
    return {
        "model": held.model,
        "phase": held.phase,
        "family": claim.family,
        "kind": claim.kind,
        "contexts": claim.contexts,
        "host": claim.host,
        "memory": sum((held.used or held.amounts).values()),
    }


def ledger_of(answer: Mapping[str, Any]) -> Ledger:
    """The ledger that such a report was made of."""
    pools: list[Pool] = []
    amounts: dict[str, dict[str, int]] = {}
    used: dict[str, dict[str, int]] = {}
    phases: dict[str, Phase] = {}
    claims: dict[str, list[Claim]] = {}
    for told in answer.get("pools") or ():
        id, ended = told["id"], 0
        for held in told["holdings"]:
            name = held["model"]
            phases[name] = held["phase"]
            amounts.setdefault(name, {})[id] = held["reserved"]
            if held["used"] is not None:
                used.setdefault(name, {})[id] = held["used"]
            ended += held["reserved"] if held["phase"] in ENDED else 0
        foreign = told["foreign"] + ended  # to who looks, what ended models left behind is somebody else's
        npu = told.get("npu") or {}
        pools.append(
            Pool(id, told["label"], told["capacity"], told["reserve"], foreign, told["backed_by"], told["own"],
                 npu.get("contexts"), npu.get("columns"))
        )  # fmt: skip
        for one in npu.get("models") or ():
            place = Claim(id, one["family"], one["kind"], one["contexts"], one["host"])
            claims.setdefault(one["model"], []).append(place)
            phases.setdefault(one["model"], one["phase"])
            amounts.setdefault(one["model"], {})
    return Ledger(
        pools,
        [
            Holding(name, phases[name], held, used.get(name, {}), tuple(claims.get(name, ())))
            for name, held in amounts.items()
        ],
    )
