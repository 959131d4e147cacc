"""Speed classes: what a token reads, how fast a device is known to be, and figures that were measured elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from accelerd.devices.inventory import Inventory
from accelerd.devices.model import Device, MemoryPool
from accelerd.devices.udev import SysfsSource
from accelerd.estimate import bandwidth
from accelerd.estimate.bandwidth import CopySpeed, Rate, Reads, copy_speed, of_device, of_processor, reads, speed, table
from tests.devices.recorded import TREES, fixture, lay_out, machine

GIB, GB = 1 << 30, 1e9
HALO = Device("gpu", "8060S", "amdgpu", "0000:c4:00.0", vendor="1002", device="1586", gfx="gfx1151", apu=True)


def nobody_measures() -> float | None:
    raise AssertionError("main memory is measured only where its speed is wanted")


# --- the table ------------------------------------------------------------------------------------------------


def test_every_entry_has_a_source_a_way_to_be_found_and_a_sane_speed() -> None:
    seen: set[tuple[object, ...]] = set()
    for group, content in table().items():
        if group == "efficiency":
            for share in content.values():
                assert 0.3 < share["experts"] < share["dense"] < 1
                assert share["source"]
            continue
        assert content["source"].startswith("https://"), group
        for entry in content["devices"]:
            keys = [key for key in ("id", "gfx", "npu") if key in entry]
            assert len(keys) == 1, entry
            if "id" in entry:
                assert re.fullmatch(r"(1002|1022|10de|8086):[0-9a-f]{4}", entry["id"]), entry
            assert 50 <= entry["bandwidth"] <= 8000, entry
            place = (entry[keys[0]], entry.get("memory", 0))
            assert place not in seen, entry
            seen.add(place)


@pytest.mark.parametrize(
    ("memory", "expected"), [(24, 960), (20, 800), (16, 576), (0, 576)], ids=["XTX", "XT", "GRE", "not told"]
)
def test_products_of_one_id_are_told_apart_by_their_memory(memory: int, expected: int) -> None:
    card = Device("gpu", "x", "amdgpu", vendor="1002", device="744c", apu=False,
                  pools=(MemoryPool("vram", memory * GIB),))  # fmt: skip
    found = of_device(card, nobody_measures)
    assert found is not None
    assert found.best == expected * GB
    assert f"{expected} GB/s" in found.source


def test_what_is_part_of_the_processor_is_listed_or_as_fast_as_main_memory() -> None:
    halo = of_device(HALO, nobody_measures)
    assert halo is not None
    assert (halo.best, halo.dense) == (256 * GB, table()["efficiency"]["shared"]["dense"])
    other = Device("gpu", "x", "amdgpu", vendor="1002", device="15bf", gfx="gfx1103", apu=True)
    found = of_device(other, lambda: 55 * GB)
    assert found is not None
    assert found.source == "main memory: 55 GB/s, measured"
    assert of_device(other, lambda: None) is None


def test_a_card_that_nobody_has_listed_is_not_known() -> None:
    assert of_device(Device("gpu", "x", "nvidia", vendor="10de", device="ffff", apu=False), nobody_measures) is None


@pytest.mark.parametrize(("name", "expected"), [("RyzenAI-npu5", 256), ("RyzenAI-npu4", 120), ("something else", None)])
def test_npus_by_their_drivers_name(name: str, expected: int | None) -> None:
    found = of_device(Device("npu", name, "amdxdna", vendor="1022", device="17f0"), nobody_measures)
    assert (found.best / GB if found else None) == expected


# Of the first two the recording has no sizes of memory: then it is the slowest of those that have the id.
RECORDED = {"rx7900xtx": 576, "rx9070xt": 432, "rx7700s": 288, "strixpoint": 120, "b580": 456, "a380-xe": 186}


@pytest.mark.parametrize("tree", RECORDED)
def test_recorded_machines_are_found(tree: str, tmp_path: Path) -> None:
    roots = machine(tmp_path)
    [archive] = [name for name, trees in TREES.items() if tree in trees]
    lay_out(fixture(archive), tree, roots)
    [gpu] = [d for d in Inventory(roots, SysfsSource(roots.sys), lambda node: True, ask_driver=lambda node: None).scan()
             if d.kind == "gpu"]  # fmt: skip
    found = of_device(gpu, lambda: None)
    assert found is not None, (gpu.vendor, gpu.device, gpu.gfx)
    assert found.best == RECORDED[tree] * GB


# --- models ---------------------------------------------------------------------------------------------------


def test_of_experts_a_token_reads_those_that_it_takes() -> None:
    tensors = {
        "token_embd.weight": 1000, "output.weight": 500, "blk.0.attn_q.weight": 70, "blk.0.ffn_gate_exps.weight": 6400,
        "blk.0.ffn_gate_shexp.weight": 30, "per_layer_token_embd.weight": 9999,
    }  # fmt: skip
    assert reads(tensors, 64, 4) == Reads(500 + 70 + 400 + 30, experts=True)
    assert reads(tensors, 0, 0) == Reads(500 + 70 + 6400 + 30)


def test_a_model_without_an_output_matrix_reads_its_embedding() -> None:
    assert reads({"token_embd.weight": 1000, "blk.0.attn_q.weight": 70}, 0, 0).weights == 1070


@pytest.mark.parametrize(
    ("tokens", "label"), [(30, "fast"), (29.9, "usable"), (8, "usable"), (7.9, "slow"), (2, "slow"), (1.9, "very slow")]
)
def test_classes(tokens: float, label: str) -> None:
    assert bandwidth.label(tokens) == label


def plain(best: float) -> Rate:
    return Rate(best * GB, 1.0, 0.5, f"{best:.0f} GB/s")


def test_speed_counts_half_the_cache_and_every_pool_in_turn() -> None:
    found = speed(Reads(8 * 10**9), 4 * 10**9, {"gpu": 0.5, "ram": 0.5}, {"gpu": plain(1000), "ram": plain(50)})
    assert found.tokens == pytest.approx(1 / (5e9 / 1000e9 + 5e9 / 50e9))
    assert str(found) == "usable: about 9.5 tokens/s"
    assert found.reason == "10.00 GB a token; 1000 GB/s; 50 GB/s"
    experts = speed(Reads(10**10, experts=True), 0, {"gpu": 1.0, "ram": 0.0}, {"gpu": plain(1000)})
    assert experts.tokens == pytest.approx(50)


def test_what_is_not_known_is_said() -> None:
    unknown = speed(Reads(10**9), 0, {"gpu": 1.0}, {"gpu": None})
    assert (unknown.tokens, unknown.label) == (None, "")
    assert str(unknown).startswith("speed not known: nobody has told")
    assert speed(Reads(0), 0, {}, {}).tokens is None


@pytest.mark.parametrize(
    ("tokens", "text"),
    [(1000, "fast: more than 300 tokens/s"), (123.4, "fast: about 120 tokens/s"), (45.2, "fast: about 45 tokens/s"),
     (99.7, "fast: about 100 tokens/s"), (0.31, "very slow: about 0.3 tokens/s")],
)  # fmt: skip
def test_figures_have_no_more_digits_than_are_known(tokens: float, text: str) -> None:
    assert str(speed(Reads(round(1000e9 / tokens)), 0, {"a": 1.0}, {"a": plain(1000)})) == text


# Bytes that a token reads, and tokens/s: kyuz0's results for Strix Halo, of the year 2026.
ANCHORS = {"llama-2-7b Q4_0": (3.75e9, False, 55.7), "gemma-4-31B Q4_K_XL": (18.4e9, False, 11.5),
           "Qwen3.6-27B Q8": (28.5e9, False, 6.3), "Qwen3-Coder-30B Q4_K_XL": (2.0e9, True, 96),
           "gpt-oss-120b": (3.0e9, True, 56.6), "Qwen3.5-122B-A10B Q5": (7.5e9, True, 22.3)}  # fmt: skip


@pytest.mark.parametrize("name", ANCHORS)
def test_estimates_are_within_a_half_of_what_was_measured(name: str) -> None:
    size, experts, measured = ANCHORS[name]
    found = speed(Reads(round(size), experts), 0, {"gpu": 1.0}, {"gpu": of_device(HALO, nobody_measures)})
    assert found.tokens == pytest.approx(measured, rel=0.5)


# --- main memory ----------------------------------------------------------------------------------------------


def test_main_memory_is_copied_by_several_threads() -> None:
    assert copy_speed(2) > 10e6


def test_what_was_measured_is_remembered_by_processor(tmp_path: Path) -> None:
    asked: list[int] = []

    def measure(cores: int) -> float:
        asked.append(cores)
        return 42e9

    first = CopySpeed(tmp_path / "new", "A Processor", lambda: None, measure, cores=64)
    assert (first(), first()) == (42e9, 42e9)
    assert asked == [8], "more cores do not make memory faster"
    assert CopySpeed(tmp_path / "new", "A Processor", lambda: None, measure, cores=64)() == 42e9
    assert len(asked) == 1
    CopySpeed(tmp_path / "new", "Another", lambda: None, measure, cores=2)()
    assert asked == [8, 2]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["main-memory.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"[" * 100_000, b"\xff", b'{"A, 1 cores": "fast"}', b'{"A, 1 cores": -1}'],
    ids=range(6),
)
def test_a_cache_that_is_broken_is_measured_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "main-memory.json").write_bytes(content)
    assert CopySpeed(tmp_path, "A", lambda: None, lambda cores: 7e9, cores=1)() == 7e9


def test_nothing_is_measured_where_memory_is_short(tmp_path: Path) -> None:
    def measure(cores: int) -> float:
        raise AssertionError("it would take memory that somebody else needs")

    assert CopySpeed(tmp_path, "A", lambda: 100 << 20, measure, cores=4)() is None


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert CopySpeed(tmp_path / "file", "A", lambda: None, lambda cores: 7e9, cores=1)() == 7e9


def test_the_processor_reads_less_than_it_could() -> None:
    many = of_processor(100 * GB, 64)
    assert 0 < many.effective(experts=True) < many.effective(experts=False) == 80 * GB
    assert many.source == "main memory: 100 GB/s, measured; 64 cores"


def test_few_cores_are_slower_than_memory() -> None:
    # What was measured: 16.0 tokens/s with one core and 29 with two, of a model of 0.6 GB.
    for cores, measured in ((1, 16.0), (2, 29.0)):
        found = speed(Reads(600_000_000), 0, {"ram": 1.0}, {"ram": of_processor(60 * GB, cores)})
        assert found.tokens == pytest.approx(measured, rel=0.1)
