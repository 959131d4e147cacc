"""Estimates held against what the real llama-server says of models that it loads, row by row.

Weights and caches are exact; compute buffers are a closed form with a margin. Together they are within 3 % or 32 MiB,
whichever is more, and never under by more than the margin, for every kind of model at three contexts and three types of
the cache. The further rows change the batch, flash attention, slots and the order of weights.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from accelerd.estimate.compute import MARGIN
from accelerd.estimate.estimate import REPACKED, EstimateSettings, estimate
from accelerd.estimate.tensors import read_model
from tests.memory import reported, zoo, zoo_report

MIB = 1 << 20
FAR = 0.03  # of what is reported
LEAST_FAR = 32 * MIB
EXACT = 0.005  # weights and cache, of what is reported


def wanted(told: reported.Settings) -> EstimateSettings:
    """The estimate's settings for what the server is told."""
    return EstimateSettings(
        context=told.context,
        slots=told.parallel,
        type_k=told.type_k,
        type_v=told.type_v,
        flash="off" if told.flash_attention == "off" else "on",
        batch=told.batch,
        ubatch=told.ubatch,
        mmap=told.mmap,
        embeddings="--embeddings" in told.further,
        rerank="--rerank" in told.further,
        repacked=REPACKED.get(os.uname().machine, frozenset()) if told.repack else frozenset(),
    )


def further(told: reported.Settings) -> bool:
    """One row of each kind, beside those that differ in context and type alone."""
    return told.ubatch == 1024 or (told.flash_attention == "off" and told.ubatch == 256) or told.repack or told.mmap


def far_off(
    server: str, path: Path, rows: Sequence[reported.Settings], draft: Path | None = None
) -> list[tuple[reported.Settings, float, float, int]]:
    """Rows where the estimate is not what the server takes: settings, MiB too many, as a part, in weights and cache."""
    model, wrong = read_model(path), []
    for told in rows:
        real = reported.reported(server, path, told, draft)
        found = estimate(model, wanted(told), draft=read_model(draft) if draft else None)
        seen = real.model + real.context + real.compute + (real.output if draft else 0)
        share = found.placed(())[0]
        mine = share.weights + share.cache + share.compute + share.draft + (share.output if draft else 0)
        far = max(FAR * seen, LEAST_FAR) * (2 if draft else 1)  # two models, two margins
        exact = real.model + real.context
        off = 0 if draft else share.weights + share.cache - exact
        if not -MARGIN <= mine - seen <= far or abs(off) > EXACT * exact:
            wrong.append((told, (mine - seen) / MIB, mine / seen - 1, off))
    return wrong


@pytest.mark.parametrize("name", zoo.LOADABLE)
def test_an_estimate_is_what_the_server_takes(name: str, llama_server: str, tmp_path: Path) -> None:
    files = zoo.make(name, tmp_path)
    draft = zoo.make(zoo.ZOO[name].draft, tmp_path).path if zoo.ZOO[name].draft else None
    rows = list(zoo_report.settings_of(name))
    assert len(rows) == 9
    rows += [told for told in zoo_report.settings_of(name, wide=True) if further(told)]
    wrong = far_off(llama_server, files.path, rows, draft)
    shutil.rmtree(tmp_path)  # a hundred MB each
    assert not wrong


@pytest.mark.slow
def test_an_estimate_of_a_real_model_is_what_the_server_takes(llama_server: str, gemma_model: Path) -> None:
    """Gemma 3 270M: weights of several types, a vocabulary that is most of it, a window of 512 tokens."""
    contexts = (2048, 8192, 32768)
    rows = [reported.Settings(context, kv, kv) for context in contexts for kv in zoo_report.KV_TYPES]
    assert not far_off(llama_server, gemma_model, [*rows, reported.Settings(8192, repack=True)])


@pytest.mark.parametrize("name", ["qwen3moe", "gemma3", "deepseek2"])
def test_an_estimate_is_what_the_server_takes_of_a_model_that_only_its_header_shows(
    name: str, llama_server: str, tmp_path: Path
) -> None:
    """llama-fit-params, too, looks at headers only, and says so of models that no test could load."""
    big = zoo.make("qwen3-235b-a22b-shards", tmp_path)
    model = read_model(big.path)
    told = reported.Settings(context={"qwen3moe": 4096, "gemma3": 32768, "deepseek2": 131072}[name])
    fit = os.path.join(os.path.dirname(llama_server), "llama-fit-params")
    ((_, weights, cache, buffer),) = reported.projected(fit, big.path, told)
    found = estimate(model, EstimateSettings(context=told.context, few_outputs=False)).placed(())[0]
    assert [found.weights // MIB, found.cache // MIB] == [weights, cache]
    assert 0 <= found.compute // MIB - buffer <= LEAST_FAR // MIB + FAR * buffer
