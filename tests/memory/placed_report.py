"""What llama-server says of models of the zoo whose parts lie on several devices: the figures of placed_rows.json.

The devices are processes of ggml's RPC server, two of them, so that any machine will do; a build of llama.cpp with
GGML_RPC=ON is needed. `python -m tests.memory.placed_report LLAMA_SERVER RPC_SERVER` prints the rows. RPC devices do
not compute for main memory, as GPUs do for large batches: compute buffers are a lower bound.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.memory import reported, zoo

ROWS = Path(__file__).with_name("placed_rows.json")


@dataclass(frozen=True)
class Placement:
    """A model of the zoo with settings of a model, and the same as options of the program. A and B are the devices."""

    animal: str
    settings: dict[str, Any]
    options: tuple[str, ...]
    context: int = 4096


PLACEMENTS = (
    Placement("llama-gqa", {"gpus": "AB"}, ()),
    Placement("llama-gqa", {"gpu_layers": 5, "gpus": "AB"}, ("-ngl", "5")),
    Placement("llama-gqa", {"gpus": "AB", "tensor_split": [3, 1]}, ("-ts", "3,1")),
    Placement("llama-gqa", {"gpus": "AB", "tensor_split": [0, 1]}, ("-ts", "0,1")),
    Placement("llama-gqa", {"split_mode": "none", "main_gpu": "B"}, ("-sm", "none", "-mg", "1")),
    Placement("llama-gqa", {"gpus": "A", "n_cpu_ffn": 3}, ("-dev", "RPC0", "-ncffn", "3")),
    Placement("llama-gqa", {"gpus": "A", "override_tensor": ["output=CPU"]}, ("-dev", "RPC0", "-ot", "output=CPU")),
    Placement(
        "llama-gqa",
        {"gpus": "AB", "tensor_split": [1, 0], "override_tensor": [r"blk\.[0-3]\.ffn=RPC1", "ffn=CPU"]},
        ("-ts", "1,0", "-ot", r"blk\.[0-3]\.ffn=RPC1,ffn=CPU"),
    ),
    Placement("llama-gqa", {"gpus": "A", "lora": 2}, ("-dev", "RPC0")),
    Placement("llama-gqa", {"gpus": "A", "lora": 1, "gpu_layers": 6}, ("-dev", "RPC0", "-ngl", "6")),
    Placement(
        "llama-gqa", {"gpus": "AB", "split_mode": "tensor", "tensor_split": [1, 1]}, ("-sm", "tensor", "-ts", "1,1")
    ),
    Placement("qwen3moe", {"gpus": "A"}, ("-dev", "RPC0")),
    Placement("qwen3moe", {"gpus": "A", "cpu_moe": True}, ("-dev", "RPC0", "-cmoe")),
    Placement("qwen3moe", {"gpus": "A", "n_cpu_moe": 4}, ("-dev", "RPC0", "-ncmoe", "4")),
    Placement("qwen3moe", {"gpus": "AB", "tensor_split": [2, 1], "n_cpu_moe": 2}, ("-ts", "2,1", "-ncmoe", "2")),
    Placement("gemma3", {"gpus": "A", "gpu_layers": 3}, ("-dev", "RPC0", "-ngl", "3"), 16384),
    Placement("qwen2", {"gpus": "A", "override_tensor": ["token_embd=CPU"]}, ("-dev", "RPC0", "-ot", "token_embd=CPU")),
    Placement("drafted", {"gpus": "A"}, ("-dev", "RPC0", "-devd", "RPC0", "-ngld", "all")),
    Placement("drafted", {"gpus": "A", "draft_gpu_layers": 0}, ("-dev", "RPC0", "-ngld", "0")),
    Placement(
        "drafted",
        {"gpus": "A", "draft_cache_type_k": "q8_0", "draft_cache_type_v": "q8_0", "draft_max": 8},
        ("-dev", "RPC0", "-ngld", "all", "-ctkd", "q8_0", "-ctvd", "q8_0", "--spec-draft-n-max", "8"),
    ),
)


def adapters(count: int, folder: Path) -> list[Path]:
    return [zoo.make(f"adapter-{number}", folder).path for number in range(count)]


def told(placement: Placement, files: Sequence[Path]) -> reported.Settings:
    further = list(placement.options)
    if not {"-ngl"} & set(further):
        further += ["-ngl", "all"]
    if files:
        further += ["--lora", ",".join(map(str, files))]
    return reported.Settings(context=placement.context, further=tuple(further))


@contextlib.contextmanager
def devices(program: str, count: int, folder: Path) -> Iterator[list[str]]:
    """Addresses of so many devices."""
    ports = []
    for _ in range(count):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    with contextlib.ExitStack() as running:
        for port in ports:
            log = running.enter_context((folder / f"{port}.log").open("w"))
            command = [program, "-H", "127.0.0.1", "-p", str(port), "-t", "1"]
            process = running.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
            running.callback(process.kill)
        yield [f"127.0.0.1:{port}" for port in ports]


def places_of(name: str, addresses: Sequence[str]) -> list[str]:
    """Where a buffer of this name lies; what is divided by tensors says what each device has."""
    if name.startswith("Meta"):
        return [f"RPC{number}" for number in range(len(addresses))]
    address = name.partition("[")[2].removesuffix("]")
    return [f"RPC{addresses.index(address)}" if address in addresses else "host"]


def rows(server: str, rpc_server: str) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as made, devices(rpc_server, 2, Path(made)) as addresses:
        folder = Path(made)
        for placement in PLACEMENTS:
            animal = zoo.make(placement.animal, folder)
            name = zoo.ZOO[placement.animal].draft
            draft = zoo.make(name, folder).path if name else None
            settings = told(placement, adapters(placement.settings.get("lora", 0), folder))
            further = tuple(
                re.sub(r"RPC(\d)", lambda found: f"RPC0[{addresses[int(found[1])]}]", word)
                if "=" in word else word
                for word in settings.further
            )  # fmt: skip
            settings = reported.Settings(settings.context, further=("--rpc", ",".join(addresses), *further))
            row = {"animal": placement.animal, "settings": placement.settings, "context": placement.context}
            try:
                report = reported.reported(server, animal.path, settings, draft)
            except RuntimeError as error:
                print(placement, error, file=sys.stderr)
                continue
            by_place: dict[str, dict[str, int]] = {}
            for one in report.rows:
                for place in places_of(one.name, addresses):
                    kinds = by_place.setdefault(place, {})
                    for kind, size in asdict(one).items():
                        if size and kind != "name":
                            kinds[kind] = kinds.get(kind, 0) + size
            yield {**row, "places": by_place}


if __name__ == "__main__":
    json.dump(list(rows(os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]))), sys.stdout, indent=1)
