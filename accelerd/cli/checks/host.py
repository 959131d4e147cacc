"""The machine below: Python, directories, memory, devices."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from accelerd.cli.checks.base import Check, Surroundings
from accelerd.cli.checks.engine import weight
from accelerd.cli.text import count, size
from accelerd.devices.inventory import inventory, machine_memory

OLDEST_PYTHON = (3, 11)
SHARE = 0.8  # of the machine's memory, where the configuration sets no limit


def python(s: Surroundings) -> Iterator[Check]:
    version = s.python or sys.version_info[:3]
    text = ".".join(map(str, version))
    if version[:2] >= OLDEST_PYTHON:
        yield Check("python", "ok", text)
    else:
        yield Check(
            "python", "fail", f"{text} is too old: 3.11 is needed", "install Python 3.11 or newer and accelerd in it"
        )


def directories(s: Surroundings) -> Iterator[Check]:
    """May accelerd write where it must, and may nobody else?"""
    roots = s.roots
    if not roots.runtime.parent.is_dir():
        yield Check(
            "runtime-dir", "fail", f"{roots.runtime.parent} does not exist: there is no login session",
            "loginctl enable-linger",
        )  # fmt: skip
    else:
        yield directory("runtime-dir", roots.runtime, private=True)
    yield directory("config-dir", roots.config_file.parent, private=False)
    yield directory("state-dir", roots.state, private=False)
    yield directory("cache-dir", roots.cache, private=False)


def directory(id: str, path: Path, *, private: bool) -> Check:
    """A directory, or the nearest one above it that exists."""
    there = next((p for p in (path, *path.parents) if p.exists()), Path("/"))
    if not there.is_dir():
        return Check(id, "fail", f"{there} is not a directory", f"mv {there} {there}.old")
    if not os.access(there, os.W_OK | os.X_OK):
        return Check(id, "fail", f"{there} is not writable", f"sudo chown $USER {there}")
    mode = stat.S_IMODE(path.stat().st_mode) if path.is_dir() else 0o700
    open_to_others = mode & (0o077 if private else 0o002)
    if open_to_others:
        wanted = "700" if private else "o-w"
        return Check(id, "fail", f"{path} is open to other users (mode {mode:o})", f"chmod {wanted} {path}")
    return Check(id, "ok", str(path) + ("" if path.is_dir() else " (will be made)"))


def memory(s: Surroundings) -> Iterator[Check]:
    """Does the largest model fit, do all?"""
    found = machine_memory(s.roots)
    if found is None:
        yield Check("memory", "warn", "the machine's memory is unknown", "set memory in [scheduler]")
        return
    total, available = found
    limit = s.config.scheduler.memory or int(total * SHARE)
    weights = {name: weight(spec) for name, spec in s.config.models.items()}
    facts = f"{size(available)} of {size(total)} free, {size(limit)} for models"
    too_big = [name for name, needed in weights.items() if needed > limit]
    if too_big:
        names = ", ".join(f"{name} ({size(weights[name])})" for name in too_big)
        yield Check(
            "memory", "warn", f"{facts}: too little for {names}", "take a smaller quantization or a larger limit"
        )
        return
    together = sum(weights.values())
    if weights:
        facts += f"; {count(len(weights), 'model')}: {size(together)}" + (", in turn" if together > limit else "")
    yield Check("memory", "ok", facts)


def devices(s: Surroundings) -> Iterator[Check]:
    """Which gpus and npus, and may this user use them?"""
    found = [d for d in inventory(s.roots, s.udev) if d.kind != "cpu"]
    if not found:
        yield Check("devices", "ok", "no GPU or NPU: models run on the processor")
    for device in found:
        words = [f"{device.kind} {device.name}", device.driver or "no driver", device.node or device.slot or ""]
        words += [f"{size(pool.total)} {pool.name}" for pool in device.pools]
        detail = ", ".join(word for word in words if word)
        if device.problem:
            yield Check("devices", "warn", f"{detail}: {device.problem}", device.fix or "")
        else:
            yield Check("devices", "ok", detail)
        for trouble in device.troubles:
            yield Check("devices", "warn", f"{device.kind} {device.name}: {trouble.message}", trouble.fix or "")
