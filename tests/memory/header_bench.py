"""How long the header of a huge model takes on this machine, and an estimate from it.

    python -m tests.memory.header_bench [FOLDER]

Makes a sparse file of 152 GB with 151936 words in it, whole and in four parts, and takes the best of several looks.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from accelerd.estimate.estimate import EstimateSettings, estimate
from accelerd.estimate.tensors import read_model
from tests.memory import zoo

ROUNDS = 9


def best(run: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds: the best and the middle one."""
    taken = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        taken.append((time.perf_counter() - start) * 1e3)
    taken.sort()
    return taken[0], taken[ROUNDS // 2]


def main(folder: Path) -> None:
    for name in ("qwen3-235b-a22b", "qwen3-235b-a22b-shards"):
        made = zoo.make(name, folder)
        header = best(lambda path=made.path: read_model(path))  # type: ignore[misc]
        model = read_model(made.path)
        figures = best(lambda model=model: estimate(model, EstimateSettings(context=32768)).placed(()))  # type: ignore[misc]
        print(
            f"{name}: {model.weights / 1e9:.0f} GB, {len(model.tensors)} tensors, {model.vocabulary} words,"
            f" {len(made.paths)} files: header {header[0]:.1f} ms (median {header[1]:.1f}),"
            f" estimate {figures[0]:.1f} ms (median {figures[1]:.1f})"
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place))
