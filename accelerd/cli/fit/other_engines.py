"""`accelctl fit` of models that llama-server does not run: on an NPU, or in a Lemonade Server.

Their engine or the daemon says what they need; whether that is free follows from the memory in use. Reads no headers,
estimates no speed, loads nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import asdict

from accelerd.base.sizes import human_size
from accelerd.cli.context import Context
from accelerd.cli.failure import ExitStatus, Failure
from accelerd.cli.fit.verdict import MachineState, ModelFit, machine_of, requirement_of
from accelerd.cli.output import CliOutput
from accelerd.cli.text import count
from accelerd.cli.time_of_day import yielded
from accelerd.config import Config
from accelerd.config.model import ModelSpec
from accelerd.devices.model import Device
from accelerd.memory.model import RAM, MemoryRequirement
from accelerd.memory.npu_rules import NPU_ENGINES

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

        engine = Flm(config.flm, environ=context.env)
        return asyncio.run(engine.forecast(spec, devices, ask=True)).options
    text = f"only the daemon can find out what {spec.name} needs, by asking {spec.engine}"
    raise Failure(text, code="not_known", hint="see: accelctl status")


class OtherEngineFit(ModelFit):
    def __init__(self, spec: ModelSpec, options: Sequence[MemoryRequirement], machine: MachineState) -> None:
        super().__init__(spec.name, options, machine)
        self.spec = spec

    @property
    def text(self) -> str:
        where = self.place
        if self.fits_now:
            return f"fits {where}"
        if self.fits:
            return f"fits {where} after unloading {', '.join(self.leaving)}"
        return f"does not fit {where}: {self.why_not()}"

    def why_not(self) -> str:
        """Why it does not fit even after unloading what may be unloaded."""
        if why := self.alone.npu_conflict(self.need):
            return why
        for short in self.alone.books.shortages(self.need.amounts):
            pool = short.balance.pool
            where = "main memory" if pool.id == RAM else f"the memory of {pool.label}"
            return f"it needs {human_size(short.wanted)} of {where}, {human_size(short.missing)} more than is free"
        return f"it needs {human_size(self.need.total)}, more than scheduler.memory allows for all models"

    @property
    def place(self) -> str:
        labels = [pool.label for id, pool in self.machine.ledger.pools.items() if id in self.need.devices]
        return f"on {', '.join(labels)}" if labels else "on the NPU" if self.need.claims else "in main memory"


def answered(verdict: OtherEngineFit, report: Mapping[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    spec, need, pools = verdict.spec, verdict.need, verdict.machine.ledger.pools
    return {
        "fits": verdict.fits,
        "now": verdict.fits_now,
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
    verdict = OtherEngineFit(spec, needs(context, spec, told, devices, config), machine_of(report, config))
    notes = [str(report["degraded"])] if report.get("degraded") else []
    if report.get("yielded"):
        notes.append(yielded(report["yielded"]))
    answer = answered(verdict, report, notes)
    context.out.result(answer)
    show(context.out, answer)
    return ExitStatus.OK if verdict.fits else ExitStatus.FAILED
