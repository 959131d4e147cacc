"""accelctl doctor: what accelerd needs of this machine, each ok, warn or fail, with the one command that fixes it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from accelerd.base.sizes import human_size
from accelerd.cli.context import Context
from accelerd.cli.failure import ExitStatus
from accelerd.cli.text import count

if TYPE_CHECKING:
    from accelerd.cli.checks.base import Check, CheckContext

EPILOG = "The exit status is 1 when a check fails, and 0 when there are only warnings."
STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--devices", action="store_true", help="list the devices, as the system and the vendors' libraries see them"
    )


def run(context: Context, args: argparse.Namespace) -> int:
    if args.devices:
        return devices(context)
    from accelerd.cli.checks.base import CheckContext
    from accelerd.cli.programs import SystemPrograms

    machine = CheckContext(context.roots, context.env, context.client, SystemPrograms(context.env))
    return report(context, run_checks(machine))


def run_checks(machine: CheckContext) -> list[Check]:
    """Every check, in the order in which a person would fix things."""
    from accelerd.cli.checks import containers, engine, host, lemonade, memory, npu, remotes, service, strix_halo

    checks = (
        host.python, host.directories, engine.configuration, engine.model_files, engine.programs, engine.commands,
        containers.programs, containers.rootless, containers.there, memory.memory, memory.swap, host.devices,
        strix_halo.strix_halo, strix_halo.rocm_builds, npu.flm, npu.conflicts, lemonade.lemonade, remotes.remotes,
        service.daemon,
        service.level, service.units, service.linger, service.ports, service.control_socket, service.journal,
    )  # fmt: skip
    of_models = (
        engine.model_files, engine.programs, engine.commands, containers.programs, containers.rootless,
        containers.there, memory.memory, strix_halo.rocm_builds, npu.flm, npu.conflicts, service.ports,
    )  # fmt: skip
    # what these would say of the defaults is not true of a configuration that is not valid
    left_out = of_models if machine.machine.checked[0] is None else ()
    return [finding for check in checks if check not in left_out for finding in check(machine)]


def report(context: Context, checks: list[Check]) -> int:
    """Print the findings; 1 when one of them is a failure."""
    out = context.out
    number = {level: sum(1 for c in checks if c.level == level) for level in STYLES}
    out.result(
        {"ok": number["fail"] == 0, "checks": [{**check._asdict(), "fix": check.fix or None} for check in checks]}
    )
    column = max(len(check.id) for check in checks)
    for check in checks:
        level = out.style(f"{check.level:<4}", STYLES[check.level])
        indent = " " * (6 + column + 2)
        out.wrapped(check.detail, indent=indent, first=f"{level}  {check.id:<{column}}  ")
        if check.fix and check.level != "ok":
            # not wrapped: it is there to be copied
            out.line(f"{indent}{out.style('→', 'cyan')} {check.fix}")
    warnings, failures = count(number["warn"], "warning"), count(number["fail"], "failure")
    out.line()
    out.line(f"{number['ok']} ok, {warnings}, {failures}")
    return ExitStatus.FAILED if number["fail"] else ExitStatus.OK


def devices(context: Context) -> int:
    """The inventory, with names and memory from NVML and amdsmi where they work."""
    from accelerd.devices import vendors
    from accelerd.devices.inventory import inventory

    readings = [vendors.nvidia(), vendors.amd()]
    found = vendors.enrich(inventory(context.roots), readings)
    out = context.out
    reasons = {r.library: r.reason for r in readings}
    out.result({"devices": [d.json() for d in found], "libraries": reasons})
    rows = []
    for device in found:
        pools = ", ".join(f"{human_size(p.total)} {p.name}" for p in device.pools) or "-"
        rows.append((device.kind, device.name, device.driver or "-", device.slot or "-", device.node or "-", pools))
    out.table(("KIND", "NAME", "DRIVER", "SLOT", "NODE", "MEMORY"), rows)
    problems = [f"{d.name}: {d.problem} ({d.fix})" for d in found if d.problem]
    unread = [f"{library}: {reason}" for library, reason in reasons.items() if reason]
    if problems or unread:
        out.line()
    for text in problems:
        out.wrapped(text, indent="  ", first="! ")
    for text in unread:
        out.wrapped(text, indent="  ", first="  ", style="dim")
    return ExitStatus.OK
