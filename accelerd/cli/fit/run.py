"""The steps of `accelctl fit`: read the model, ask the daemon or this machine who holds what, judge, show.

Works without a daemon: then this process measures by itself. Loads nothing and decides nothing that the scheduler
decides.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from accelerd.base.sizes import human_size
from accelerd.cli.context import Context
from accelerd.cli.failure import ExitStatus, Failure, usage
from accelerd.cli.live_page import WITHOUT_DAEMON
from accelerd.cli.local_machine import LocalMachine
from accelerd.cli.output import CliOutput
from accelerd.cli.time_of_day import yielded

if TYPE_CHECKING:
    from accelerd.cli.fit.subject import Subject
    from accelerd.cli.fit.verdict import GgufFit
    from accelerd.config.model import ModelSpec
    from accelerd.devices.model import Device
    from accelerd.engines.base import EngineBuild
    from accelerd.estimate.bandwidth import Rate

HOSTED = ("auto", "child", "systemd")  # homes whose program is this machine's


def fit(context: Context, model: str, wanted: dict[str, Any], here: LocalMachine, devices: tuple[Device, ...]) -> int:
    """Judge one model and show the answer; the exit status. `wanted`: the settings asked for."""
    from accelerd.cli.fit import other_engines
    from accelerd.cli.fit.subject import find

    settings = here.config
    if (other := other_engines.find(context, model, settings)) is not None:
        if set(wanted) - {"context"}:
            text = f"{other.name} runs with {other.engine}, which takes none of these options but --ctx"
            raise usage(text)
        report, told = ask_daemon(
            context, other.name if other.name in settings.models else None, overridden=bool(wanted)
        )
        other = replace(other, **wanted)
        return other_engines.fit(context, other, report or here.memory_page(), told, devices, settings)
    subject = find(context, model, wanted, settings)
    report, told = ask_daemon(context, subject.spec.name if subject.configured else None, overridden=bool(wanted))
    report = report or here.memory_page()
    fitting, notes = judged(context, subject, settings, report, told, devices)
    if report.get("yielded"):
        notes.append(yielded(report["yielded"]))
    if here.checked[0] is None:
        notes.append("the configuration is not valid, so the defaults were used; see: accelctl config check")
    answer = answered(subject, fitting, report, notes)
    context.out.result(answer)
    show(context.out, answer, reserved=bool(fitting.measured))
    return ExitStatus.OK if answer["fits"] else ExitStatus.FAILED


def ask_daemon(
    context: Context, configured: str | None, *, overridden: bool
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Memory in use and what the daemon knows of a configured model; None: there is no daemon, or it does not know."""
    try:
        report = {"source": "daemon", **context.client.get("memory")}
    except Failure as failure:
        if failure.code not in WITHOUT_DAEMON:
            raise
        return None, None
    if configured is None or overridden:
        return report, None
    try:
        return report, context.client.get("fit", model=configured)
    except Failure as failure:
        if failure.code not in ("model_not_found", "not_found"):
            raise
        return report, None  # it is newer than the configuration that the daemon has read


def judged(
    context: Context,
    subject: Subject,
    settings: Any,
    report: dict[str, Any],
    told: dict[str, Any] | None,
    devices: tuple[Device, ...],
) -> tuple[GgufFit, list[str]]:
    """Compare the model with the machine; also notes for the user."""
    import platform

    from msgspec import structs

    from accelerd.cli.fit.verdict import GgufFit, machine_of, requirement_of
    from accelerd.devices.model import usable
    from accelerd.engines.llama_server.forecast import (
        Forecaster,
        ForecastInputs,
        contexts_of,
        settings_of,
        with_checkpoints,
    )

    spec, build, notes = settled(context, subject, settings, devices)
    gpus = usable(devices)
    used, layers = settings_of(spec, build, gpus, platform.machine())
    used = with_checkpoints(used, spec, subject.read)
    known = ForecastInputs(subject.read, used, spec, gpus, layers)
    measured = tuple(requirement_of(option) for option in told["options"]) if told else ()
    if not measured and spec.memory is not None:
        measured = Forecaster().forecast(spec, spec, build, devices).options
    machine = machine_of(report, settings, devices=devices, rate=rates(context, devices))
    for tokens in contexts_of(known, devices, settings.scheduler.memory) if spec.context == "auto" else (None,):
        if tokens is not None:
            used = structs.replace(used, context=tokens * used.slots)
            known = structs.replace(known, settings=used, spec=replace(spec, context=tokens))
        of_context = tuple(need for need in measured if need.context in (None, tokens))
        found = GgufFit(known, machine, of_context, configured=subject.configured)
        if found.fits:
            break
    if gpus and build is not None and build.backend == "cpu" and layers != 0:
        notes.append(f"llama-server {build.version} was built for the processor only and does not use {gpus[0].name}")
    return found, [*notes, *remarks(found, told)]


def settled(
    context: Context, subject: Subject, settings: Any, devices: tuple[Device, ...]
) -> tuple[ModelSpec, EngineBuild | None, list[str]]:
    """The model with what tuning rules add, and the program that would run it; None: it could not be asked."""
    from accelerd.base.errors import AccelError
    from accelerd.cli.engine_program import program_of
    from accelerd.engines.llama_server.files import with_task
    from accelerd.estimate.model_kind import identify_model
    from accelerd.tuning.resolve import situation, tune
    from accelerd.tuning.tuner import RuleTuner, device_for

    spec = with_task(subject.spec, identify_model(subject.model).kind)
    if spec.home not in HOSTED:
        text = f"its llama-server is in a {spec.home} and was not queried: tuning rules and its image are left out"
        return spec, None, [text]
    try:
        build = program_of(
            spec, context.client, settings.llama_server, context.env, context.roots.cache, configured=subject.configured
        )
    except AccelError as error:
        note = f"llama-server could not be queried for its settings, so this may be too high: {error.problem}"
        return spec, None, [note]
    rules = RuleTuner(context.roots.config_file, lambda: devices, context.roots.sys)
    held = situation(spec, device_for(spec, build, devices), build, subject.model.header, subject.size)
    return tune(rules.rules().rules, spec, held, rules.cores()[0]).spec, build, []


def rates(context: Context, devices: tuple[Device, ...]) -> Callable[[str], Rate | None]:
    """How fast a pool is read; main memory is measured when that is first asked."""
    from accelerd.devices.host import machine_memory
    from accelerd.estimate import bandwidth
    from accelerd.memory.model import RAM
    from accelerd.tuning.tuner import physical_cores

    def available() -> int | None:
        told = machine_memory(context.roots)
        return told[1] if told else None

    processor = next((device.name for device in devices if device.kind == "cpu"), "unknown")
    speed = bandwidth.CopySpeed(context.roots.cache, processor, available)
    cores = physical_cores(context.roots.sys, os.sched_getaffinity(0))
    by_id = {device.id: device for device in devices}

    def rate(pool: str) -> Rate | None:
        if pool == RAM:
            best = speed()
            return bandwidth.of_processor(best, cores) if best else None
        return bandwidth.of_device(by_id[pool], speed) if pool in by_id else None

    return rate


def remarks(found: GgufFit, told: dict[str, Any] | None) -> list[str]:
    notes = []
    context, trained = found.known.spec.tokens, found.trained
    if context and trained and context > trained:
        notes.append(f"it was trained for a context of {trained}")
    if found.itself:
        notes.append("it is loaded now; its own memory counts as free here")
    if told:
        notes.append(f"memory: {found.need.source}")
    return notes


def answered(subject: Subject, found: GgufFit, report: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """The command's JSON, as docs/memory.md describes it."""
    estimate, used, need = found.estimate, found.known.settings, found.need
    room = found.chosen
    unknown, speed = found.unknown, found.speed
    pools = []
    for id, amount in need.amounts.items():
        pool = found.machine.ledger.pools.get(id)
        parts = dict(need.shares.get(id, {}))
        free = room.free.get(id) if pool is not None else None
        pools.append({
            "id": id, "label": pool.label if pool else id, "parts": parts, "amount": amount, "free": free,
            "spare": found.spare.get(id),
        })  # fmt: skip
    answer = {
        "fits": found.fits and not unknown,
        "now": found.fits_now and not unknown,
        "verdict": "",
        "source": need.source,
        "machine": report.get("source"),
        "model": {
            "name": subject.spec.name,
            "path": subject.spec.path or (subject.remote.url if subject.remote else None),
            "architecture": subject.model.architecture,
            "size": subject.size,
            "read": subject.remote.read if subject.remote else None,
            "context": found.trained or None,
            "experts": estimate.facts.experts,
            "experts_used": estimate.facts.used,
            "encoder": estimate.facts.encoder,
        },
        "settings": {
            "context": found.known.spec.context,
            "parallel": used.slots,
            "kv": [used.type_k, used.type_v],
            "batch": used.batch,
            "ubatch": used.ubatch,
            "flash_attention": used.flash,
        },
        "devices": list(need.devices),
        "pools": pools,
        "leaving": list(found.leaving),
        "contexts": [] if unknown else found.contexts,
        "speed": {"tokens": speed.tokens, "class": speed.label or None, "reason": speed.reason},
        "offers": found.offers,
        "notes": notes,
    }
    answer["verdict"] = verdict_line(found, answer)
    return answer


def verdict_line(found: GgufFit, answer: dict[str, Any]) -> str:
    if found.unknown:
        return f"cannot tell whether it fits: {found.unknown}"
    pools = {pool["id"]: pool for pool in answer["pools"]}
    where = [pools[id]["label"] for id in found.need.devices if id in pools]
    place = f"on {' and '.join(where)}" if where else "in main memory"
    if not answer["fits"]:
        short = [pool for pool in answer["pools"] if (pool["spare"] or 0) < 0] or answer["pools"]
        needs = "; ".join(
            f"{human_size(pool['amount'])} of {pool['label']}, of which {left(pool)} is free" for pool in short
        )
        if len(short) == 1 and short[0]["label"] in place:
            needs = f"{human_size(short[0]['amount'])}, and {left(short[0])} is free"
        others = ", even with all other models unloaded" if found.movable else ""
        return f"does not fit {place}: it needs {needs}{others}"
    spare = min((size for size in found.spare.values()), default=0)
    parts = [f"fits {place}"]
    if found.leaving:
        parts[0] += f" after unloading {' and '.join(found.leaving)}"
    parts[0] += f" with {human_size(spare)} to spare"
    if answer["contexts"]:
        first = answer["contexts"][0]
        most = first["now"] if answer["now"] else first["alone"]
        parts.append(f"context up to {most}")
    if found.speed.tokens is not None or not answer["model"]["encoder"]:
        parts.append(str(found.speed))
    return ", ".join(parts)


def left(pool: dict[str, Any]) -> str:
    return human_size(max(0, pool["amount"] + (pool["spare"] or 0)))


# --- for people -----------------------------------------------------------------------------------------------


def show(out: CliOutput, answer: dict[str, Any], *, reserved: bool) -> None:
    """The whole page. `reserved`: the total is what the daemon or the user reserves, not the sum of the parts."""
    style = "green" if answer["now"] else "yellow" if answer["fits"] else "red"
    out.wrapped(answer["verdict"], style=style)
    out.line()
    out.wrapped(described(answer), indent="  ", style="dim")
    out.line()
    show_parts(out, answer, reserved)
    if any(row["alone"] for row in answer["contexts"]):
        out.line()
        show_contexts(out, answer)
    notes = [*answer["notes"]]
    if answer["offers"]:
        notes.insert(0, answer["offers"])
    if notes:
        out.line()
    for note in notes:
        out.wrapped(note, indent="  ", first="! ")


def described(answer: dict[str, Any]) -> str:
    """What the model is, and the settings it was estimated with."""
    model, used = answer["model"], answer["settings"]
    experts = f", {model['experts_used']} of {model['experts']} experts a token" if model["experts"] else ""
    kind = model["architecture"] or "unknown architecture"
    k, v = used["kv"]
    cache = "" if model["encoder"] else f", KV cache {k}" + (f" and {v}" if v != k else "")
    slots = f", {used['parallel']} requests at once" if used["parallel"] > 1 else ""
    context = "its full context" if not used["context"] else f"context {used['context']}"
    read = f"; {human_size(model['read'])} of {human_size(model['size'])} was read" if model["read"] is not None else ""
    return f"{model['name']}: {kind}{experts}, {human_size(model['size'])}{read}. With {context}{slots}{cache}."


def show_parts(out: CliOutput, answer: dict[str, Any], reserved: bool) -> None:
    """A row for each part of the model, a column for each pool."""
    pools = answer["pools"]
    head = ("", *(pool["label"] for pool in pools))
    names = list(dict.fromkeys(name for pool in pools for name in pool["parts"]))
    rows = [
        (name, *(human_size(pool["parts"][name]) if name in pool["parts"] else "-" for pool in pools)) for name in names
    ]
    styles = [("", *[""] * len(pools)) for _ in rows]
    total = "reserved" if reserved and names else "in total"
    rows.append((total, *(human_size(pool["amount"]) for pool in pools)))
    styles.append(("bold", *["bold"] * len(pools)))
    rows.append(("free", *(human_size(max(0, pool["free"])) if pool["free"] is not None else "?" for pool in pools)))
    styles.append(("", *["" if pool["free"] is None or pool["free"] >= pool["amount"] else "red" for pool in pools]))
    out.table(head, rows, styles)


def show_contexts(out: CliOutput, answer: dict[str, Any]) -> None:
    """The largest context for each type of the cache."""
    crowded = any(row["now"] != row["alone"] for row in answer["contexts"])
    head = ("KV CACHE", "LARGEST CONTEXT", *(("WITH ALL OTHERS UNLOADED",) if crowded else ()))
    rows = [
        (row["kv"], tokens(row["now"]), *((tokens(row["alone"]),) if crowded else ())) for row in answer["contexts"]
    ]
    out.table(head, rows)


def tokens(count: int) -> str:
    return str(count) if count else "none"
