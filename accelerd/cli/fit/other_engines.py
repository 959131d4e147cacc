"""`accelctl fit` of models that llama-server does not run: on an NPU, or in a Lemonade Server.

Their engine or the daemon says what they need; whether that is free follows from the memory in use. Reads no headers,
estimates no speed, loads nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from msgspec.structs import asdict

from accelerd.base.sizes import human_size
from accelerd.cli.context import Context
from accelerd.cli.failure import ExitStatus, Failure
from accelerd.cli.fit.verdict import requirement_of
from accelerd.cli.output import CliOutput
from accelerd.cli.text import count
from accelerd.config import Config
from accelerd.config.model import ModelSpec
from accelerd.devices.model import Device
from accelerd.memory.ledger import Ledger
from accelerd.memory.model import RAM, MemoryRequirement
from accelerd.memory.npu_rules import NPU_ENGINES, apart, apart_in_words, clash, lacking, on_npu

ITS_OWN = "llama-server"  # whose models are files, and judged by their headers


def find(context: Context, text: str, config: Config) -> ModelSpec | None:
    """A configured model of another engine, or one that FastFlowLM knows, `npu/NAME`; None: something else is meant."""
    known = next((spec for spec in config.models.values() if text in (spec.name, *spec.aliases)), None)
    if known is not None:
        return known if known.engine != ITS_OWN else None
    from accelerd.cli import npu_models

    if not text.startswith(npu_models.PREFIX):
        return None
    wanted = npu_models.look_up(context, text, config.flm.binary)
    return ModelSpec(name=wanted.name, **wanted.table)


def needs(
    context: Context, spec: ModelSpec, told: Mapping[str, Any] | None, devices: Sequence[Device], config: Config
) -> tuple[MemoryRequirement, ...]:
    """The ways to place it. `told`: the daemon's answer, if it knows the model. Failure when nobody knows."""
    if told is not None:
        return tuple(requirement_of(option) for option in told["options"])
    if spec.engine in NPU_ENGINES:
        from accelerd.engines.flm.engine import Flm

        engine = Flm(config.flm, environ=context.env, devices=lambda: devices)
        return asyncio.run(engine.forecast(spec, devices, ask=True)).options
    text = f"only the daemon can find out what {spec.name} needs, by asking {spec.engine}"
    raise Failure(text, code="not_known", hint="see: accelctl status")


@dataclass(frozen=True)
class OtherEngineFit:
    """One model compared with the machine."""

    spec: ModelSpec
    need: MemoryRequirement
    ledger: Ledger
    pinned: frozenset[str]  # models that are unloaded for no other

    @cached_property
    def others(self) -> dict[str, MemoryRequirement]:
        """The other models that are loaded."""
        return {
            held.model: MemoryRequirement(held.amounts, "", claims=held.claims)
            for held in self.ledger.holdings
            if held.model != self.spec.name
        }

    @cached_property
    def movable(self) -> list[str]:
        """Models that may be unloaded for it: of its own kind, and not pinned."""
        return [name for name, other in self.others.items() if name not in self.pinned and not apart(self.need, other)]

    @property
    def now(self) -> bool:
        return self.why_not(()) is None

    @cached_property
    def leaving(self) -> tuple[str, ...]:
        """Models to unload for it: as few as are enough; none where even all are not enough."""
        if self.now or self.why_not(self.movable) is not None:
            return ()
        gone = list(self.movable)
        for name in self.movable:
            rest = [other for other in gone if other != name]
            gone = rest if self.why_not(rest) is None else gone
        return tuple(gone)

    @property
    def fits(self) -> bool:
        return self.now or bool(self.leaving)

    def why_not(self, gone: Iterable[str]) -> str | None:
        """Why it does not fit with these unloaded; None: it does."""
        if self.spec.engine in NPU_ENGINES and not self.need.devices:
            return "this machine has no working NPU; see: accelctl doctor"
        left = {*gone, self.spec.name}
        for name, other in self.others.items():
            if name not in left and (why := clash(self.need, other)):
                return f"{name} is loaded, and {why}"
        there = [other for name, other in self.others.items() if name not in left]
        for pool, wanted, taken in lacking(self.need, there, self.ledger.pools.values()):
            return f"it needs {wanted} of {pool.contexts} hardware contexts of {pool.label}, and {taken} are in use"
        away = [held.amounts for held in self.ledger.holdings if held.model in left]
        for short in self.ledger.shortages(self.need.amounts, away):
            pool = short.balance.pool
            where = "main memory" if pool.id == RAM else f"the memory of {pool.label}"
            text = f"it needs {human_size(short.wanted)} of {where}, {human_size(short.missing)} more than is free"
            kept = any(apart(self.need, other) for other in there)
            return f"{text}; {apart_in_words(self.need)}" if kept else text
        return None

    @property
    def text(self) -> str:
        """The verdict in one line."""
        where = self.place
        if self.now:
            return f"fits {where}"
        if self.leaving:
            return f"fits {where} after unloading {', '.join(self.leaving)}"
        return f"does not fit {where}: {self.why_not(self.movable)}"

    @property
    def place(self) -> str:
        labels = [pool.label for id, pool in self.ledger.pools.items() if id in self.need.devices]
        return f"on {', '.join(labels)}" if labels else "on the NPU" if on_npu(self.need) else "in main memory"


def judged(
    spec: ModelSpec, ways: Sequence[MemoryRequirement], ledger: Ledger, report: Mapping[str, Any]
) -> OtherEngineFit:
    """By the best of the ways that fits, else the best."""
    pinned = frozenset(
        held["model"] for pool in report.get("pools") or () for held in pool["holdings"] if held.get("pin")
    )
    found = [OtherEngineFit(spec, need, ledger, pinned) for need in ways]
    return next((one for one in found if one.now), None) or next((one for one in found if one.fits), found[0])


def answered(verdict: OtherEngineFit, report: Mapping[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    """As JSON."""
    spec, need, pools = verdict.spec, verdict.need, verdict.ledger.pools
    return {
        "fits": verdict.fits,
        "now": verdict.now,
        "verdict": verdict.text,
        "source": need.source,
        "machine": report["source"],
        "model": {"name": spec.name, "engine": spec.engine, "model": spec.model},
        "devices": list(need.devices),
        "amounts": dict(need.amounts),
        "parts": dict(need.parts),
        "claims": [asdict(c) | {"of": pools[c.device].contexts if c.device in pools else None} for c in need.claims],
        "leaving": list(verdict.leaving),
        "notes": list(notes),
    }


def show(out: CliOutput, answer: Mapping[str, Any]) -> None:
    """The whole page."""
    style = "green" if answer["now"] else "yellow" if answer["fits"] else "red"
    out.wrapped(str(answer["verdict"]), style=style)
    out.line()
    model = answer["model"]
    out.wrapped(f"{model['name']}: {model['engine']} {model['model'] or ''}, {answer['source']}.", indent="  ")
    out.line()
    rows = [(name, human_size(held)) for name, held in answer["parts"].items() if held]
    out.table(("", "MEMORY"), [*rows, ("in total", human_size(sum(answer["amounts"].values())))])
    for claim in answer["claims"]:
        of = f" of {claim['of']}" if claim["of"] else ""
        out.wrapped(f"{count(claim['contexts'], 'hardware context')}{of}, as {claim['family']} {claim['kind']}")
    for note in answer["notes"]:
        out.wrapped(note, indent="  ", first="! ")


def fit(
    context: Context, spec: ModelSpec, report: dict[str, Any], told: Mapping[str, Any] | None,
    devices: Sequence[Device], config: Config,
) -> int:  # fmt: skip
    """Judge it and show that; the exit status."""
    from accelerd.memory.report import ledger_of

    verdict = judged(spec, needs(context, spec, told, devices, config), ledger_of(report), report)
    notes = [str(report["degraded"])] if report.get("degraded") else []
    if given := report.get("yielded"):
        notes.append(f"{given.get('what')} is yielded to other programs now; to end that: accelctl resume")
    answer = answered(verdict, report, notes)
    context.out.result(answer)
    show(context.out, answer)
    return ExitStatus.OK if verdict.fits else ExitStatus.FAILED
