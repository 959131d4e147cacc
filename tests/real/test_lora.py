"""LoRA adapters with the real llama-server through the daemon: scales of the configuration, and of single requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from accelerd.estimate.tensors import read_model
from tests.harness import Daemon, DaemonFactory
from tests.models import SHORT_REPLY, make_model

HELLO = [{"role": "user", "content": "good day"}]


def adapter(path: Path, model: Path, seed: int) -> Path:
    """One that changes what every token is followed by."""
    base = read_model(str(model))
    width, words = base.tensors["output.weight"].shape
    random = np.random.default_rng(seed)
    writer = GGUFWriter(path, base.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    for part, shape in (("a", (4, width)), ("b", (words, 4))):
        writer.add_tensor(f"output.weight.lora_{part}", random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def daemon(llama_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("lora")
    model = make_model(folder / "models", reply=SHORT_REPLY)
    files = [adapter(folder / f"adapter, {seed}.gguf", model, seed) for seed in (1, 2)]
    loras = (
        f"lora = [{{path = {json.dumps(str(files[0]))}, scale = 0}}, {{path = {json.dumps(str(files[1]))}, scale = 0}}]"
    )
    toml = f"""
[engines.llama-server]
binary = {json.dumps(llama_server)}
[defaults]
threads = 1
context = 1024
[models.off]
path = {json.dumps(str(model))}
{loras}
[models.on]
path = {json.dumps(str(model))}
{loras.replace("scale = 0", "scale = 4", 1)}
"""
    with DaemonFactory(folder) as factory:
        yield factory.start(toml)


def said(daemon: Daemon, model: str, **fields: Any) -> str:
    reply = daemon.chat(model, messages=HELLO, max_tokens=8, temperature=0, **fields)
    assert reply.status == 200, reply.body
    return str(json.loads(reply.body)["choices"][0]["message"]["content"])


def test_the_configuration_and_a_request_set_the_scales(daemon: Daemon) -> None:
    plain, first = said(daemon, "off"), said(daemon, "on")
    assert SHORT_REPLY.startswith(plain)
    assert first != plain
    assert said(daemon, "off", lora=[{"id": 0, "scale": 4}]) == first
    second = said(daemon, "off", lora=[{"id": 1, "scale": 4}])
    assert second not in (plain, first)
    assert said(daemon, "off") == plain  # a request's scales are its own
    assert said(daemon, "on", lora=[{"id": 0, "scale": 0}]) == plain


def test_adapters_are_explained_and_counted(daemon: Daemon) -> None:
    said(daemon, "on")
    explained = daemon.control("GET", "explain?model=on").json()
    (flag,) = [one for one in explained["flags"] if one["text"].startswith("--lora-scaled")]
    assert "adapter, 1.gguf:4" in flag["text"]
    assert "LoRA adapters" in flag["reason"]
