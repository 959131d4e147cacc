"""The zoo itself: real programs load all of it, and what they say of its memory agrees with the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from accelerd.estimate import gguf
from tests.memory.reported import MIB, Report, Settings, parse, projected, reported
from tests.memory.zoo import LOADABLE, ZOO, Model, make
from tests.memory.zoo_report import rows, settings_of

HUNDREDTH = MIB // 100  # llama-server's lines have two decimals
# Bytes that llama-server takes beside the tensors of the file: qwen35moe's layer that only predicts further tokens is
# left out, gemma4's embedding is there a second time as its output.
BESIDE = {"gemma4": 768 * 64000 // 256 * 210}
LAST_LAYER = "blk.8."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


def draft_of(name: str, folder: Path) -> Model | None:
    return make(ZOO[name].draft, folder) if ZOO[name].draft else None


def loaded(server: str, name: str, folder: Path, settings: Settings) -> Report:
    draft = draft_of(name, folder)
    return reported(server, make(name, folder).path, settings, draft.path if draft else None)


def fit_params(server: str) -> str:
    return str(Path(server).with_name("llama-fit-params"))


@pytest.mark.parametrize("name", LOADABLE)
def test_llama_server_loads_it_and_says_what_it_takes(name: str, llama_server: str, folder: Path) -> None:
    settings = Settings(ZOO[name].contexts[0], "q8_0", "q8_0", further=ZOO[name].arguments)
    report = loaded(llama_server, name, folder, settings)
    model, draft = make(name, folder), draft_of(name, folder)
    expected = model.tensor_bytes + (draft.tensor_bytes if draft else 0)
    if name == "qwen35moe":
        expected -= sum(t.size for t in ZOO[name].shape().tensors if t.name.startswith(LAST_LAYER))
    assert abs(report.model - expected - BESIDE.get(name, 0)) < 2 * HUNDREDTH
    assert report.compute > 0
    assert report.output > 0
    assert (report.context > 0) == (model.architecture not in ("bert", "nomic-bert"))
    assert report.total == report.model + report.context + report.compute + report.output
    # Its own table has whole MiB, no output buffer, and no draft model. It may end before it has written it.
    if draft is None and report.table:
        assert report.table == (("Host", report.model // MIB, report.context // MIB, report.compute // MIB),)
    # llama-fit-params agrees, but for a row of logits a token in its compute buffer.
    [(_, weights, context, compute)] = projected(fit_params(llama_server), model.path, settings)
    if draft is None:
        assert (weights, context) == (report.model // MIB, report.context // MIB)
        assert compute >= report.compute // MIB


def test_every_kind_of_cache_is_there(llama_server: str, folder: Path) -> None:
    """Windows, MLA and states make a difference that a formula for plain models would miss."""
    at = {
        name: [loaded(llama_server, name, folder, Settings(context)) for context in (4096, 16384)]
        for name in ("llama", "gemma3", "deepseek2", "mamba", "jamba")
    }
    assert [report.kv for report in at["llama"]] == [8 * 2 * 512 * 2 * n for n in (4096, 16384)]
    assert at["gemma3"][1].kv < 3.5 * at["gemma3"][0].kv
    assert [report.kv for report in at["deepseek2"]] == [8 * (512 + 64) * 2 * n for n in (4096, 16384)]
    assert at["mamba"][0].kv == 0
    assert at["mamba"][0].state == at["mamba"][1].state > 0
    assert at["jamba"][0].kv > 0 < at["jamba"][0].state


def test_the_output_matrix_of_tied_ends_is_there_twice_when_repacked(llama_server: str, folder: Path) -> None:
    model = make("gemma3", folder)
    report = reported(llama_server, model.path, Settings(1024, repack=True))
    assert {row.name for row in report.rows} == {"CPU", "CPU_REPACK"}
    assert abs(report.model - model.tensor_bytes - 640 * 262144 // 32 * 18) < 2 * HUNDREDTH


@pytest.mark.parametrize("name", [name for name, kind in ZOO.items() if not kind.loads])
def test_big_ones_are_headers_only(name: str, llama_server: str, folder: Path) -> None:
    model = make(name, folder)
    assert sum(path.stat().st_size for path in model.paths) > 152e9
    assert sum(path.stat().st_blocks * 512 for path in model.paths) < 32e6
    assert gguf.read_header(model.path).architecture == "qwen3moe"
    [(device, weights, context, _)] = projected(fit_params(llama_server), model.path, Settings(4096))
    assert (device, weights, context) == ("Host", model.tensor_bytes // MIB, 94 * 2 * 4 * 128 * 2 * 4096 // MIB)


def test_it_is_made_once_and_says_the_same(folder: Path) -> None:
    first = make("shards", folder)
    before = [path.stat().st_mtime_ns for path in first.paths]
    assert make("shards", folder) == first
    assert [path.stat().st_mtime_ns for path in first.paths] == before
    assert [path.name for path in first.paths] == [f"shards-0000{n}-of-00003.gguf" for n in (1, 2, 3)]


def test_what_does_not_come_up_is_an_error_with_what_was_said(llama_server: str, tmp_path: Path) -> None:
    shards = make("shards", tmp_path)
    shards.paths[1].unlink()
    with pytest.raises(RuntimeError, match="00002-of-00003"):
        reported(llama_server, shards.path, Settings(512))


def test_lines_of_several_devices() -> None:
    report = parse(
        [
            "0.1 I load_tensors:      Vulkan0 model buffer size =   100.50 MiB",
            "0.1 I load_tensors:   CPU_Mapped model buffer size =    10.00 MiB",
            "0.1 I llama_kv_cache:    Vulkan0 KV buffer size =    64.00 MiB",
            "0.1 I llama_kv_cache:    Vulkan0 KV buffer size =    16.00 MiB",
            "0.1 I llama_context: Vulkan_Host  output buffer size =     0.50 MiB",
            "0.1 I common_memory_breakdown_print: |   - Vulkan0 (8060S) | 999 = 500 + (190 = 100 + 80 + 10) + 9 |",
        ]
    )
    assert [row.name for row in report.rows] == ["Vulkan0", "CPU_Mapped", "Vulkan_Host"]
    assert (report.rows[0].model, report.rows[0].kv, report.output) == (100.5 * MIB, 80 * MIB, MIB // 2)
    assert report.table == (("Vulkan0", 100, 80, 10),)


def test_the_report_has_a_row_for_each_setting(llama_server: str, folder: Path) -> None:
    told = list(rows(llama_server, folder, ["draft"], wide=False))
    assert len(told) == len(list(settings_of("draft"))) == 9
    assert {(row["settings"]["context"], row["settings"]["type_k"]) for row in told} == {
        (context, kv) for context in ZOO["draft"].contexts for kv in ("f16", "q8_0", "q4_0")
    }
    assert all(row["model"] and row["context"] and row["compute"] for row in told)
    json.dumps(told)
