"""Builds the benchmark's two C programs once and keeps them in the user's cache.

Owns `$XDG_CACHE_HOME/accelerd/bench/<hash of source and flags>/`. Must never build into the checkout.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FLAGS = ("-O2", "-Wall", "-Wextra")


class BenchError(Exception):
    """The benchmark cannot go on; the message says what to do."""


def cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "accelerd" / "bench"


def build(name: str, cache: Path | None = None) -> Path:
    """The program made of `name`.c, compiled unless an earlier run did so; raises BenchError without a compiler."""
    source = HERE / f"{name}.c"
    text = source.read_bytes()
    key = hashlib.sha256(b"\0".join([text, *(flag.encode() for flag in FLAGS)])).hexdigest()[:16]
    program = (cache or cache_root()) / key / name
    if program.exists():
        return program
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise BenchError(f"cannot build {source.name}: no C compiler; install one (apt install gcc libc6-dev)")
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as scratch:  # two first runs at once: the last one wins
        made = Path(scratch) / name
        done = subprocess.run([compiler, *FLAGS, "-o", made, source], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"cannot build {source.name}:\n{done.stderr}")
        made.replace(program)
    return program
