"""Models on an NPU: does FastFlowLM report that it has what it needs, may models lock memory, what conflicts with it.

Checks FastFlowLM only where it is wanted: `flm` is on PATH, or a model uses it. What the NPU itself lacks (driver,
firmware, amd_iommu=off) is reported with the devices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from accelerd.base.decoding import from_json, whole_number
from accelerd.base.errors import AccelError
from accelerd.base.sizes import human_size
from accelerd.cli.checks.base import Check, CheckContext
from accelerd.cli.failure import Failure
from accelerd.cli.npu_models import kernel_command_line
from accelerd.cli.text import printable


def flm(s: CheckContext) -> Iterator[Check]:
    """The program, the NPU as it sees it, the models that it has and those that are missing."""
    from accelerd.engines.flm import program

    wanted = [spec for spec in s.config.models.values() if spec.engine == "flm"]
    try:
        path = program.find(s.config.flm.binary, s.env)
    except AccelError as error:
        if wanted:
            yield Check("flm", "fail", f"{wanted[0].name} needs it: {printable(error.problem)}", error.hint)
        return
    yield asyncio.run(_version(s, path))
    yield from _validated(s, path)
    yield from asyncio.run(_models(s, path))


async def _version(s: CheckContext, path: str) -> Check:
    from accelerd.engines.flm import program

    try:
        version = await program.FlmProgram().version(path, program.environment(s.env))
    except program.FlmUnavailable as error:
        return Check("flm", "fail", f"{path}: {error}", "install FastFlowLM 0.9.35 or newer")
    return Check("flm", "ok", f"{path}, version {printable(version)}")


def _validated(s: CheckContext, path: str) -> Iterator[Check]:
    """The report of `flm validate --json`, each problem with its fix."""
    from accelerd.engines.flm import stack

    outcome = s.programs.run([path, "validate", "--json"])
    try:
        report = from_json(outcome.stdout[outcome.stdout.index("{") :])
    except ValueError:
        detail = f"flm validate --json printed no report (exit status {outcome.status})"
        yield Check("npu", "warn", detail, "flm validate")
        return
    for device in stack.devices(report):
        yield Check("npu", "ok", printable(device))
    wrong = stack.troubles(report, command_line=kernel_command_line(s.roots))
    for one in wrong:
        if one.topic != "memlock":
            yield Check(f"npu-{one.topic}", "fail", printable(one.message), one.fix)
    if report.get("ready") is True or not wrong:
        yield Check("npu-stack", "ok", f"kernel {printable(str(report.get('kernel', '')))}, ready")
    yield _memlock(s, printable(str(report.get("memlock_limit", ""))))


def _memlock(s: CheckContext, here: str) -> Check:
    """Both ways into a session count: models run below the user's systemd, a person's flm below the login."""
    from accelerd.engines.flm import stack

    argv = ["systemctl", "--user", "show", "--property=DefaultLimitMEMLOCK"]
    outcome = s.programs.run(argv)
    said = outcome.stdout.strip().partition("=")[2] if outcome.status == 0 else ""
    if (limit := whole_number(said)) is not None:  # systemd's "infinity" has 20 digits
        text = f"models may lock {human_size(limit)} of memory, but FastFlowLM locks a whole model"
        return Check("npu-memlock", "fail", text, stack.MEMLOCK_FIX)
    limit = whole_number(here)
    if not said and limit is not None and limit < stack.ENOUGH_LOCKED:
        text = f"programs may lock {human_size(limit)} of memory here, but FastFlowLM locks a whole model"
        return Check("npu-memlock", "fail", text, stack.MEMLOCK_FIX)
    return Check("npu-memlock", "ok", "models may lock as much memory as they need")


async def _models(s: CheckContext, path: str) -> list[Check]:
    from accelerd.engines.flm import catalogue, model, program

    try:
        known = await program.FlmProgram().models(path, program.environment(s.env))
    except program.FlmUnavailable as error:
        return [Check("npu-models", "warn", str(error), "flm list")]
    found = []
    for spec in s.config.models.values():
        if spec.engine != "flm":
            continue
        tag = catalogue.find_tag(spec.model or "", known)
        if tag is None:
            near = " or ".join(catalogue.similar_tags(spec.model or "", known)) or "another: flm list"
            fix = f"correct {spec.origin('model')}: {near}"
            why = catalogue.why_absent(spec.model or "", known)
            found.append(Check("npu-models", "fail", f"{spec.name}: {why}", fix))
            continue
        for one in model.parts(spec, tag).values():
            if one in known and not known[one].installed:
                detail = f"{spec.name}: {one} has not been downloaded"
                found.append(Check("npu-models", "fail", detail, f"flm pull {one}"))
    here = sorted(tag for tag, one in known.items() if one.installed)
    return found or [Check("npu-models", "ok", f"downloaded: {', '.join(here) or 'none'}")]


def conflicts(s: CheckContext) -> Iterator[Check]:
    """Is something in use that is known to disturb models on the NPU? Each finding names its source."""
    from accelerd.control.known_conflicts import REMOTE_UNREACHABLE, RULES

    hazards = [] if isinstance(s.status, Failure) else s.status.get("hazards") or []
    if on_machine := [one for one in hazards if one["id"] != REMOTE_UNREACHABLE]:
        for one in on_machine:
            yield Check("npu", "warn", f"{one['message']} ({one['source']})", one["fix"])
        return
    from accelerd.devices import kfd
    from accelerd.devices.files import text
    from accelerd.memory.npu_rules import NPU_ENGINES

    on_npu = [spec.name for spec in s.config.models.values() if spec.engine in NPU_ENGINES]
    strangers = [name for pid in kfd.users(s.roots.sys) if (name := text(s.roots.proc / str(pid) / "comm"))]
    if on_npu and strangers:
        rule = next(rule for rule in RULES if rule.id == "rocm-beside-flm")
        words = {"npu": ", ".join(on_npu), "other": ", ".join(dict.fromkeys(strangers))}
        detail = f"{rule.message.format(**words)} ({rule.source})"
        yield Check("npu", "warn", detail, f"if that happens: {rule.fix.format(**words)}, or end that program")
