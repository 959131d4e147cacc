"""tests/fuzz/run [--minutes N] [TARGET…]: each target has its part of the time. The exit status: faults.

With atheris, which follows what the code does with its input; where it cannot be installed, with hypothesis, which only
varies the corpus. What fails is written to build/fuzz and shown; a file of it may be given in the place of a target.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import subprocess
import sys
import time
import traceback
import venv
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ATHERIS = "atheris>=3"
LONGEST = 16384  # bytes of an input


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/fuzz/run", description="Feeds every parser with odd bytes.")
    parser.add_argument("--minutes", type=float, default=5.0, help="for all targets together (default: 5)")
    parser.add_argument("--with", dest="kind", choices=("atheris", "hypothesis"), help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="a target, or TARGET:FILE to repeat one input")
    given = parser.parse_args()
    if given.one:
        return run_one(given.one, given.minutes * 60, given.kind)

    from tests.fuzz.targets import TARGETS

    names = given.targets or list(TARGETS)
    for name in names:
        if name.partition(":")[0] not in TARGETS:
            parser.error(f"there is no target {name}: there are {', '.join(TARGETS)}")
    python = with_atheris()
    kind = "hypothesis" if python is None else "atheris"
    faults = 0
    for name in names:
        target, _, file = name.partition(":")
        if file:
            TARGETS[target](Path(file).read_bytes())
            continue
        seconds = given.minutes * 60 / len(names)
        print(f"{target}: {seconds:.0f} s with {kind}", flush=True)
        words = [python or sys.executable, "-m", "tests.fuzz", "--with", kind, "--one", target]
        done = subprocess.run([*words, "--minutes", str(seconds / 60)], cwd=ROOT, check=False, preexec_fn=nice)
        if done.returncode:
            faults += 1
            print(
                f"{target}: FAULT; repeat it: tests/fuzz/run {target}:FILE (a file below {found(target)})", flush=True
            )
    print(f"{faults} of {len(names)} targets have faults")
    return faults


def nice() -> None:
    os.nice(15)


def found(target: str) -> Path:
    """Where the inputs go that fail."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "accelerd" / "fuzz" / target


def with_atheris() -> str | None:
    """An interpreter that has atheris and what this one has; None, and said why: there is none for this Python."""
    place = found("").parent / f"fuzz-venv-{sys.version_info[0]}.{sys.version_info[1]}"
    python = place / "bin" / "python"
    if not (place / ".ready").exists():
        print(f"installing atheris into {place}", flush=True)
        venv.create(place, with_pip=True, clear=True)
        wheels = [python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", ATHERIS]
        done = subprocess.run(wheels, capture_output=True, text=True, check=False)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"atheris cannot be installed for this Python ({why}): hypothesis is used", flush=True)
            return None
        site = next(place.glob("lib/python*/site-packages"))
        (site / "beside.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("-packages")))
        (place / ".ready").touch()
    return str(python)


def run_one(name: str, seconds: float, kind: str) -> int:
    logging.disable()  # what parsers report of odd bytes is not looked at
    place = found(name)
    for folder in (place, place / "corpus"):
        folder.mkdir(parents=True, exist_ok=True)
    if kind == "atheris":
        import atheris

        with atheris.instrument_imports(include=["accelerd"]):
            from tests.fuzz.targets import CORPUS, TARGETS
        arguments = [
            sys.argv[0],
            f"-max_total_time={max(1, round(seconds))}",
            f"-max_len={LONGEST}",
            "-timeout=20",
            "-rss_limit_mb=2048",
            "-verbosity=0",
            "-print_final_stats=1",
            f"-artifact_prefix={place}/",
            str(place / "corpus"),
            str(CORPUS / name),
        ]
        atheris.Setup(arguments, TARGETS[name])
        atheris.Fuzz()
        return 0
    from tests.fuzz.targets import TARGETS, seeds

    return vary(TARGETS[name], seeds(name), seconds, place)


def vary(target: Callable[[bytes], None], seeds: list[bytes], seconds: float, place: Path) -> int:
    """The corpus, varied by hypothesis for so long. 1 when the target fails."""
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st

    cuts = st.tuples(st.sampled_from(seeds), st.integers(0, LONGEST), st.integers(0, 8), st.binary(max_size=8))
    spliced = cuts.map(lambda cut: cut[0][: cut[1]] + cut[3] + cut[0][cut[1] + cut[2] :])
    twice = st.tuples(spliced, spliced).map(b"".join)
    end, tried = time.monotonic() + seconds, 0
    failed: list[bytes] = []

    def check(data: bytes) -> None:
        nonlocal tried
        tried += 1
        try:
            target(data)
        except Exception:
            failed.append(data)
            raise

    while time.monotonic() < end:
        limits = settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                          phases=[Phase.generate, Phase.shrink])  # fmt: skip
        test = seed(random.getrandbits(32))(limits(given(st.one_of(spliced, twice, st.binary(max_size=300)))(check)))
        try:
            test()
        except Exception:
            traceback.print_exc()
            file = place / "crash-hypothesis"
            file.write_bytes(failed[-1])
            print(f"written to {file}")
            return 1
    print(f"{tried} inputs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
