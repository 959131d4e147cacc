"""A context that nobody set: the same in the forecast, on the command line and for clients."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path
from typing import Any

import pytest

from accelerd.config.model import LlamaServerSettings, ModelSpec
from accelerd.devices.model import Device, MemoryPool
from accelerd.engines.base import Flag, LaunchPlan
from accelerd.engines.llama_server import LlamaServer
from accelerd.memory.model import MemoryRequirement
from tests.engines.helps import THIS_YEAR, program
from tests.memory.gguf_maker import string, u32, write

GIB = 1 << 30
TRAINED = 40960
CPU = Device("cpu", "a processor", pools=(MemoryPool("ram", 64 * GIB),))
KEYS = {
    "general.architecture": string("llama"), "llama.context_length": u32(TRAINED), "llama.block_count": u32(1),
    "llama.embedding_length": u32(64), "llama.attention.head_count": u32(4), "llama.feed_forward_length": u32(64),
}  # fmt: skip
NAMES = ("token_embd.weight", "output.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight", "blk.0.attn_q.weight")
WEIGHTS = dict.fromkeys(NAMES, ((64, 64), 0))


@pytest.fixture
def server(tmp_path: Path) -> LlamaServer:
    settings = LlamaServerSettings(binary=str(program(tmp_path, THIS_YEAR)))
    return LlamaServer(settings, environ={"PATH": "/usr/bin:/bin", "HOME": "/home/u"}, devices=lambda: (CPU,))


def spec(tmp_path: Path, **settings: Any) -> ModelSpec:
    return ModelSpec("m", path=str(write(tmp_path / "m.gguf", KEYS, WEIGHTS)), **settings)


def context(plan: LaunchPlan) -> tuple[str, Flag]:
    (flag,) = (flag for flag in plan.flags if flag.text.startswith("-c "))
    return shlex.split(flag.text)[1], flag


def test_the_forecast_has_each_context_with_what_it_needs_and_the_plan_the_first(
    server: LlamaServer, tmp_path: Path
) -> None:
    model = spec(tmp_path, parallel=2)
    for ask in (False, True, False):
        found = asyncio.run(server.forecast(model, (CPU,), ask=ask)).options
        assert [need.context for need in found] == [TRAINED, 20480, 10240, 8192, 4096]
        assert sorted((need.total for need in found), reverse=True) == [need.total for need in found]
    exact = asyncio.run(server.forecast(spec(tmp_path, parallel=2, context=20480), (CPU,), ask=True)).options
    assert [need.context for need in exact] == [None]
    assert exact[0].amounts == found[1].amounts
    planned = asyncio.run(server.plan(model, tmp_path))
    words, flag = context(planned)
    assert (words, planned.context) == (str(2 * TRAINED), TRAINED)
    assert flag.source == "built-in"
    assert f"{TRAINED} tokens for each request, 2 requests at once; as many as the model was trained for" in flag.reason
    assert server.traits(model).context == TRAINED


def test_where_there_was_less_room_the_plan_has_the_context_that_was_found(server: LlamaServer, tmp_path: Path) -> None:
    placed = MemoryRequirement({}, "estimated", context=10240)
    planned = asyncio.run(server.plan(spec(tmp_path), tmp_path, placed))
    assert (context(planned)[0], planned.context) == ("10240", 10240)


@pytest.mark.parametrize(("setting", "tokens"), [(4096, "4096"), (100_000, "100000")])
def test_what_a_person_wrote_stays(server: LlamaServer, tmp_path: Path, setting: int, tokens: str) -> None:
    model = spec(tmp_path, context=setting)
    placed = asyncio.run(server.forecast(model, (CPU,), ask=True)).options[0]
    planned = asyncio.run(server.plan(model, tmp_path, placed))
    assert (context(planned)[0], planned.context) == (tokens, None)


def test_the_whole_trained_context_is_asked_for_by_name(server: LlamaServer, tmp_path: Path) -> None:
    planned = asyncio.run(server.plan(spec(tmp_path, context=None), tmp_path))
    assert "-c" not in planned.argv


def test_declared_memory_keeps_the_usual_context(server: LlamaServer, tmp_path: Path) -> None:
    planned = asyncio.run(server.plan(spec(tmp_path, memory=GIB), tmp_path))
    assert context(planned)[0] == "8192"
