"""What llama-server says of each animal of the zoo, at several settings: the figures that estimates are held against.

`python -m tests.memory.zoo_report DIR [NAME…]` makes the models in DIR and prints a JSON array, a row for each run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.memory.reported import MIB, Settings, projected, reported
from tests.memory.zoo import LOADABLE, ZOO, make

KV_TYPES = ("f16", "q8_0", "q4_0")


def settings_of(name: str, *, wide: bool = False) -> Iterator[Settings]:
    """Three contexts by three types of the cache; `wide`: also other batches, slots, and no flash attention."""
    kind = ZOO[name]
    for context in kind.contexts:
        for kv in KV_TYPES:
            yield Settings(context, kv, kv, further=kind.arguments)
    if not wide:
        return
    middle = kind.contexts[1]
    for ubatch in (128, 1024, 2048):
        yield Settings(middle, ubatch=ubatch, further=kind.arguments)
    yield Settings(middle, "q8_0", "f16", further=kind.arguments)
    yield Settings(middle, flash_attention="off", further=kind.arguments)
    yield Settings(kind.contexts[2], ubatch=256, flash_attention="off", further=kind.arguments)
    yield Settings(4 * middle, parallel=4, further=("--no-kv-unified", *kind.arguments))
    yield Settings(4 * middle, parallel=4, ubatch=1024, type_k="q8_0", type_v="q8_0", further=kind.arguments)
    yield Settings(middle, repack=True, further=kind.arguments)
    yield Settings(middle, mmap=True, further=kind.arguments)


def rows(server: str, folder: Path, names: Sequence[str], *, wide: bool = True) -> Iterator[dict[str, Any]]:
    """One row for each model and setting; a run that fails is a row with `error`."""
    fit = os.path.join(os.path.dirname(server), "llama-fit-params")
    for name in names:
        model = make(name, folder)
        draft = make(ZOO[name].draft, folder).path if ZOO[name].draft else None
        for settings in settings_of(name, wide=wide):
            row = {
                "name": name,
                "path": str(model.path),
                "paths": [str(path) for path in model.paths],
                "draft": str(draft) if draft else None,
                "arch": model.architecture,
                "tensor_bytes": model.tensor_bytes,
                "settings": asdict(settings),
            }
            try:
                report = reported(server, model.path, settings, draft)
            except RuntimeError as error:
                yield {**row, "error": str(error)}
                continue
            buffers = [{key: value for key, value in asdict(one).items() if value} for one in report.rows]
            fitted = [
                {"name": device, "model": weights * MIB, "context": context * MIB, "compute": compute * MIB}
                for device, weights, context, compute in projected(fit, model.path, settings)
            ]
            yield {**row, **report.plain(), "buffers": buffers, "fit_params": fitted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", choices=[[], *LOADABLE])
    chosen = parser.parse_args()
    server = os.environ["ACCELERD_TEST_LLAMA_SERVER"]
    json.dump(list(rows(server, chosen.folder, chosen.names or LOADABLE)), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
