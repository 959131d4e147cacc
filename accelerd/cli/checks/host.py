"""The machine below: Python, directories, devices."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from accelerd.base import volumes
from accelerd.base.sizes import human_size
from accelerd.cli.checks.base import Check, CheckContext

OLDEST_PYTHON = (3, 11)


def python(s: CheckContext) -> Iterator[Check]:
    version = s.python or sys.version_info[:3]
    text = ".".join(map(str, version))
    if version[:2] >= OLDEST_PYTHON:
        yield Check("python", "ok", text)
    else:
        fix = "install Python 3.11 or newer, then accelerd with it"
        yield Check("python", "fail", f"{text} is too old; accelerd needs 3.11 or newer", fix)


def directories(s: CheckContext) -> Iterator[Check]:
    """Can accelerd write to its directories, and nobody else?"""
    roots = s.roots
    if not roots.runtime.parent.is_dir():
        yield Check(
            "runtime-dir", "fail", f"{roots.runtime.parent} does not exist: you have no login session",
            s.linger_command,
        )  # fmt: skip
    else:
        yield directory("runtime-dir", roots.runtime, private=True)
    yield directory("config-dir", roots.config_file.parent, private=False)
    yield directory("state-dir", roots.state, private=False)
    yield directory("cache-dir", roots.cache, private=False)


def directory(id: str, path: Path, *, private: bool) -> Check:
    """A directory, or the nearest one above it that exists."""
    try:
        volumes.check([str(path)])
    except volumes.NoAnswer as error:
        return Check(
            id, "fail", f"cannot look into {path}: {error.strerror}", "have the disk answer, or use another one"
        )
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
    return Check(id, "ok", str(path) + ("" if path.is_dir() else " (will be created)"))


def devices(s: CheckContext) -> Iterator[Check]:
    """Which GPUs and NPUs are there, and may this user use them?"""
    found = [d for d in s.devices if d.kind != "cpu"]
    if not found:
        yield Check("devices", "ok", "no GPU or NPU; models run on the processor")
    for device in found:
        words = [f"{device.kind} {device.name}", device.driver or "no driver", device.node or device.slot or ""]
        words += [f"{human_size(pool.total)} {pool.name}" for pool in device.pools]
        detail = ", ".join(word for word in words if word)
        if device.problem:
            yield Check("devices", "warn", f"{detail}: {device.problem}", device.fix or "")
        else:
            yield Check("devices", "ok", detail)
        for trouble in device.troubles:
            yield Check("devices", "warn", f"{device.kind} {device.name}: {trouble.message}", trouble.fix or "")
