"""What llama-server is expected to need: from headers and settings, from programs that are asked, or declared."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from accelerd.config.lora import LoraAdapter
from accelerd.config.model import LlamaServerSettings, ModelSpec, Origin
from accelerd.devices.model import Device, MemoryPool
from accelerd.engines.base import Endpoint, EngineBuild, FixedServer
from accelerd.engines.llama_server import LlamaServer, arguments, placement
from accelerd.engines.llama_server.fit_params import FitAnswer, FitRow
from accelerd.engines.llama_server.forecast import FROM_TOOL, Forecaster, corrected, settings_of
from accelerd.estimate.estimate import REPACKED, EstimateSettings, estimate
from accelerd.estimate.placing import FROM_HEADER, options
from accelerd.estimate.tensor_places import HOST
from accelerd.estimate.tensors import ModelReader
from accelerd.memory.model import RAM, Forecast
from tests.memory.animals import animal
from tests.memory.gguf_maker import string, u32, write
from tests.models import make_model

MIB, GIB = 1 << 20, 1 << 30
CARD = Device("gpu", "card", "amdgpu", "0000:03:00.0", pools=(MemoryPool("vram", 24 * GIB),), apu=False)
APU = Device("gpu", "apu", "amdgpu", "0000:c1:00.0", apu=True, unified=True,
             pools=(MemoryPool("vram", GIB), MemoryPool("unified", 65 * GIB)))  # fmt: skip
NEW = EngineBuild("llama-server", "1", "radv", frozenset({"--load-mode", "--cache-ram"}))
OLD = EngineBuild("llama-server", "0", "cuda", frozenset())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("forecast"), size_mb=60, ctx=131072)


def spec_of(path: Path | None, **more: Any) -> ModelSpec:
    return ModelSpec("m", path=str(path) if path else None, **{"context": 8192, **more})


def expect(
    spec: ModelSpec, *devices: Device, build: EngineBuild | None = NEW, answer: FitAnswer | None = None
) -> Forecast:
    return Forecaster(machine=lambda: "x86_64").forecast(spec, spec, build, devices, answer)


def asked(server: LlamaServer, spec: ModelSpec, *devices: Device, ask: bool = True) -> Forecast:
    return asyncio.run(server.forecast(spec, devices, ask=ask))


# --- settings ---


def test_the_context_is_that_of_all_slots_and_of_a_whole_input_for_embeddings() -> None:
    one, layers = settings_of(spec_of(None, context=4096, parallel=3), NEW, (), "x86_64")
    assert (one.context, one.slots, one.unified, layers) == (12288, 3, False, None)
    assert settings_of(spec_of(None, context=None), NEW, (), "")[0].context == 0
    whole = settings_of(spec_of(None, context=8000, embeddings=True), NEW, (), "")[0]
    assert (whole.ubatch, whole.batch, whole.embeddings) == (8000, 8000, True)
    assert settings_of(spec_of(None, context=90_000, rerank=True), NEW, (), "")[0].ubatch == 8192
    own = settings_of(spec_of(None, context=8000, embeddings=True, ubatch=256, batch=512), NEW, (), "")[0]
    assert (own.ubatch, own.batch) == (256, 512)


def test_what_is_not_asked_is_taken_to_be_more() -> None:
    known = settings_of(spec_of(None), NEW, (CARD,), "x86_64")[0]
    assert (known.few_outputs, known.ubatch, known.backend) == (True, 512, "radv")
    unknown = settings_of(spec_of(None), None, (CARD,), "x86_64")[0]
    assert (unknown.few_outputs, unknown.ubatch, unknown.backend) == (False, 2048, "")
    assert settings_of(spec_of(None), OLD, (CARD,), "x86_64")[0].few_outputs is False
    assert settings_of(spec_of(None), None, (), "x86_64")[0].ubatch == 512


def test_further_arguments_count() -> None:
    told = (
        "-ub", "64", "--batch-size=128", "-ctk", "q8_0", "--cache-type-v", "q4_0", "-fa", "off", "-ngl", "7", "-kvu",
        "--swa-full", "-nkvo", "--n-cpu-moe", "3", "--no-repack", "-md", "/d.gguf", "--mmproj", "/p.gguf", "-t", "4",
        "--ubatch-size", "many",
    )  # fmt: skip
    found, layers = settings_of(spec_of(None, extra_args=told), NEW, (CARD,), "x86_64")
    assert found == structs.replace(
        EstimateSettings(context=8192, few_outputs=True, backend="radv", drafted=16),
        ubatch=64, batch=128, type_k="q8_0", type_v="q4_0", flash="off", unified=True, window_full=True,
        offload_cache=False, overrides=((rf"blk\.(0|1|2){placement.EXPERTS}", HOST),),
    )  # fmt: skip
    assert layers == 7
    experts = settings_of(spec_of(None, extra_args=("-cmoe",)), NEW, (CARD,), "")[0].overrides
    assert experts == ((placement.EXPERTS, HOST),)
    assert settings_of(spec_of(None), NEW, (CARD,), "x86_64")[0].repacked == REPACKED["x86_64"]


@pytest.mark.parametrize(
    ("written", "settings"),
    [
        (("-ot", "a=CPU,b=CPU", "-ot", "c=CPU"), {"override_tensor": ("a=CPU", "b=CPU", "c=CPU")}),
        (("--n-cpu-ffn", "2"), {"n_cpu_ffn": 2}),
        (("-ts", "3/1"), {"tensor_split": (3.0, 1.0)}),
        (("-sm", "none"), {"split_mode": "none"}),
        (("--no-mmproj-offload",), {"mmproj_offload": False}),
        (("-ctkd", "q8_0", "--cache-type-v-draft", "q4_0"),
         {"draft_cache_type_k": "q8_0", "draft_cache_type_v": "q4_0"}),
        (("--spec-draft-ngl", "0"), {"draft_gpu_layers": 0}),
        (("--spec-draft-n-max", "9", "--spec-type", "draft-mtp,ngram-mod"),
         {"draft_max": 9, "spec_type": ("draft-mtp", "ngram-mod")}),
        (("-fit", "on", "-fitt", "512"), {"fit": True, "fit_target": (512 * MIB,)}),
        (("-lm", "none"), {"mmap": False}),
        (("--no-mmap",), {"mmap": False}),
        (("-ngl", "-1"), {"gpu_layers": "auto"}),
        (("--embeddings",), {"embeddings": True}),
    ],
)  # fmt: skip
def test_an_argument_counts_like_its_setting(written: tuple[str, ...], settings: dict[str, Any]) -> None:
    typed = settings_of(spec_of(None, **settings), NEW, (CARD,), "x86_64")
    assert settings_of(spec_of(None, extra_args=written), NEW, (CARD,), "x86_64") == typed
    assert typed != settings_of(spec_of(None), NEW, (CARD,), "x86_64")


def test_adapters_of_arguments_are_read_in_either_layout() -> None:
    told = ("--lora", 'a,"b,c"', "--lora-scaled", "d:0.5", "--lora-scaled", "e", "0.25")
    found = arguments.read(spec_of(None, lora=(LoraAdapter("first"),), extra_args=told))
    assert [(one.path, one.scale) for one in found.spec.lora] == [
        ("first", 1.0), ("a", 1.0), ("b,c", 1.0), ("d", 0.5), ("e", 0.25),
    ]  # fmt: skip
    assert found.unknown == ()


def test_what_nobody_can_forecast_is_named(path: Path) -> None:
    told = ("--rpc", "box:1", "--control-vector", "v.gguf", "-ot", "nonsense", "--lora-scaled", "x", "--metrics")
    assert arguments.read(spec_of(path, extra_args=told)).unknown == (
        "--rpc",
        "--control-vector",
        "-ot",
        "--lora-scaled",
    )
    (need,) = expect(spec_of(path, extra_args=told[:2])).options
    assert need.source == f"{FROM_HEADER}; what --rpc in extra_args changes is not known before it is loaded"
    assert need.total == expect(spec_of(path)).options[0].total
    keys = {expect(spec_of(path, extra_args=some)).key for some in ((), told[:2], ("--metrics",))}
    assert len(keys) == 2


# --- placement ---


SECOND = Device("gpu", "second", "amdgpu", "0000:41:00.0", pools=(MemoryPool("vram", 8 * GIB),), apu=False)
TWO = (CARD, SECOND)


def placed(path: Path, *devices: Device, **settings: Any) -> list[dict[str, int]]:
    return [dict(need.amounts) for need in expect(spec_of(path, **settings), *devices).options]


def test_split_mode_and_main_gpu_choose_the_cards(path: Path) -> None:
    a, b = (card.id for card in TWO)
    assert [set(need) for need in placed(path, *TWO)] == [{RAM, a}, {RAM, b}, {RAM, a, b}]
    assert [set(need) for need in placed(path, *TWO, split_mode="none")] == [{RAM, a}, {RAM, b}]
    assert [set(need) for need in placed(path, *TWO, split_mode="none", main_gpu=b)] == [{RAM, b}]
    for mode in ("row", "tensor"):
        assert [set(need) for need in placed(path, *TWO, split_mode=mode)] == [{RAM, a, b}]
    rows, layers = (expect(spec_of(path, **more), *TWO).options for more in ({"split_mode": "row"}, {}))
    assert rows[0].parts["weights"] == layers[2].parts["weights"]
    assert rows[0].amounts[a] > rows[0].amounts[b]  # it has three times the memory


def test_tensor_split_divides_as_it_says(path: Path) -> None:
    a, b = (card.id for card in TWO)
    split = {"gpus": (a, b), "context": 1024}
    (even,) = placed(path, *TWO, **split, tensor_split=(1, 1))
    (mine,) = placed(path, *TWO, **split, tensor_split=(1, 3))
    assert mine[b] > even[b] > 0
    assert mine[a] < even[a]
    (other,) = placed(path, *TWO, gpus=(b, a), context=1024, tensor_split=(3, 1))
    assert other[b] > other[a]
    (alone,) = placed(path, CARD, **split, tensor_split=(1, 3))  # the other card is gone
    assert set(alone) == {RAM, a}


def test_weights_lie_where_a_pattern_says(path: Path) -> None:
    a, b = (card.id for card in TWO)
    names = {a: "CUDA0", b: "CUDA1"}

    def weights(**settings: Any) -> dict[str, int]:
        spec = spec_of(path, gpus=(a, b), tensor_split=(1, 0), context=1024, **settings)
        forecast = Forecaster(machine=lambda: "x86_64").forecast(spec, spec, NEW, TWO, None, names)
        return dict(forecast.options[0].amounts)

    plain, moved = weights(), weights(override_tensor=(r"blk\.0\.=CUDA1", "nothing=CUDA7"))
    layer = sum(t.size for name, t in ModelReader().read(str(path)).tensors.items() if name.startswith("blk.0."))
    assert moved[b] - plain[b] >= layer
    assert plain[a] - moved[a] == pytest.approx(layer, abs=8 * MIB)
    home = weights(n_cpu_ffn=1)
    assert home[RAM] > plain[RAM]
    assert home[b] == plain[b]


def test_fit_offers_what_fits_a_small_card(path: Path) -> None:
    whole = placed(path, CARD)[0]
    size = whole[CARD.id] - 20 * MIB
    small = structs.replace(CARD, pools=(MemoryPool("vram", size),))
    assert len(placed(path, small)) == 1
    first, fitted = placed(path, small, fit=True, fit_target=(MIB,))
    assert first == whole
    assert 0 < fitted[CARD.id] <= size - MIB
    assert fitted[RAM] > whole[RAM]
    assert placed(path, CARD, fit=True)[1] == whole  # there is room for all of it


def test_adapters_are_counted_and_part_of_the_key(path: Path, tmp_path: Path) -> None:
    target = next(name for name in ModelReader().read(str(path)).tensors if name.startswith("blk.0."))
    pairs = {"general.architecture": string("llama"), "general.type": string("adapter")}
    adapter = write(tmp_path / "a.gguf", pairs, {f"{target}.lora_a": ((1 << 20,), 0), f"{target}.lora_b": ((64,), 0)})
    with_it = expect(spec_of(path, lora=(LoraAdapter(str(adapter)),)), CARD)
    plain = expect(spec_of(path), CARD)
    assert with_it.options[0].parts["lora"] == (4 << 20) + 256
    assert with_it.options[0].amounts[CARD.id] - plain.options[0].amounts[CARD.id] == (4 << 20) + 256
    assert with_it.key != plain.key
    assert expect(spec_of(path, extra_args=("--lora", str(adapter))), CARD).options == with_it.options


def test_a_projector_can_stay_in_main_memory(path: Path, tmp_path: Path) -> None:
    a, b = (card.id for card in TWO)
    pairs = {"general.architecture": string("clip"), "clip.vision.embedding_length": u32(64)}
    projector = str(write(tmp_path / "p.gguf", pairs, {"v.a": ((1 << 20,), 0)}))
    both = {"gpus": (a, b), "tensor_split": (1, 1), "mmproj": projector}
    (plain,), (host,) = placed(path, *TWO, **both), placed(path, *TWO, **both, mmproj_offload=False)
    (second,) = placed(path, *TWO, **both, mmproj_device=b)
    assert host[RAM] - plain[RAM] == plain[a] - host[a] == 36 * MIB
    assert second[b] - plain[b] == plain[a] - second[a] == 36 * MIB


def test_a_draft_model_has_settings_of_its_own(path: Path) -> None:
    def draft(**settings: Any) -> tuple[dict[str, int], int]:
        (need,) = expect(spec_of(path, draft_model=str(path), context=16384, **settings), CARD).options
        return dict(need.amounts), need.parts["draft model"]

    (plain, size), (small, less) = draft(), draft(draft_cache_type_k="q8_0", draft_cache_type_v="q8_0")
    assert less < size
    assert plain[CARD.id] - small[CARD.id] == size - less
    host, _ = draft(draft_gpu_layers=0)
    assert host[CARD.id] < plain[CARD.id]
    assert host[RAM] > plain[RAM]


# --- forecasts ---


def test_a_model_is_estimated_from_its_header(path: Path) -> None:
    spec = spec_of(path, context=4096)
    (need,) = expect(spec).options
    assert need.source == FROM_HEADER
    assert need.parts["weights"] == pytest.approx(os.path.getsize(path), rel=0.01)
    assert set(need.amounts) == {RAM}
    (gpu,) = expect(spec, CARD, APU).options
    assert gpu.devices == (CARD.id,)
    assert gpu.amounts[CARD.id] > need.amounts[RAM] - 60 * MIB
    assert expect(replace(spec, gpus=(APU.id,)), CARD, APU).options[0].devices == (APU.id,)
    assert expect(replace(spec, gpu_layers=0), CARD).options == (need,)


def test_projector_and_draft_model_are_counted(path: Path, tmp_path: Path) -> None:
    pairs = {"general.architecture": string("clip"), "clip.vision.embedding_length": u32(64)}
    projector = write(tmp_path / "p.gguf", pairs, {"v.a": ((1 << 20,), 0)})
    both = expect(spec_of(path, mmproj=str(projector), draft_model=str(path))).options[0]
    assert both.parts["projector"] == 36 * MIB
    assert both.parts["draft model"] > os.path.getsize(path)
    assert expect(spec_of(path, extra_args=("-md", str(path)))).options[0].parts["draft model"] > 0


def test_a_declared_figure_wins_and_lies_where_the_model_would(path: Path) -> None:
    declared = spec_of(path, memory=5 * GIB, origins={"memory": Origin("model", "/c.toml", 3)})
    assert expect(declared).options[0].amounts == {RAM: 5 * GIB}
    assert expect(declared, APU).options[0].amounts == {APU.id: 5 * GIB}
    (need,) = expect(declared, CARD, APU).options
    assert (need.amounts, need.devices, need.source, need.declared) == (
        {CARD.id: 5 * GIB}, (CARD.id,), "declared: model (/c.toml:3)", True,
    )  # fmt: skip
    (need,) = expect(replace(declared, gpu_layers=0), CARD).options
    assert (need.amounts, need.declared) == ({RAM: 5 * GIB}, True)
    assert expect(replace(declared, gpus=(APU.id,)), CARD, APU).options[0].devices == (APU.id,)
    assert expect(declared).key == ""


def test_what_cannot_be_read_counts_by_its_size_or_not_at_all(path: Path, tmp_path: Path) -> None:
    need = expect(ModelSpec("m", model="org/model")).options[0]
    assert (need.total, need.source.startswith("unknown: ")) == (0, True)
    missing = expect(spec_of(tmp_path / "none.gguf")).options[0]
    assert (missing.total, missing.source.startswith("unknown: cannot read")) == (0, True)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(path.read_bytes()[: 1 << 20])
    need = expect(spec_of(broken)).options[0]
    assert need.total == (1 << 20) * 11 // 10 + 256 * MIB
    assert "its header cannot be read: the file ends" in need.source


def test_the_key_names_files_settings_and_program(path: Path, tmp_path: Path) -> None:
    spec = spec_of(path)
    key = expect(spec).key
    assert len(key) == 64
    assert expect(spec).key == key
    assert expect(replace(spec, name="another", idle_timeout=3)).key == key
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    others = [
        *(expect(replace(spec, **change)) for change in (  # type: ignore[arg-type]
            {"context": 9000}, {"path": str(copy)}, {"gpu_layers": 3}, {"cache_type_k": "q8_0"},
            {"draft_model": str(copy)})),
        expect(spec, build=OLD),
    ]  # fmt: skip
    assert len({key, *(one.key for one in others)}) == 7
    assert expect(spec, build=None).key == ""  # what is not settled is measured under no name


# --- llama-fit-params ---


def rows(need: Any, *, more: int = 0, compute: int | None = None) -> FitAnswer:
    own = need.parts
    return FitAnswer((FitRow("Host", "host", own["weights"] // MIB * MIB + more, own["kv cache"],
                             own["compute"] if compute is None else compute),))  # fmt: skip


def test_the_tool_is_believed_where_it_says_something_else(path: Path) -> None:
    spec = spec_of(path)
    (need,) = expect(spec).options
    assert expect(spec, answer=rows(need)).options == (need,)
    assert expect(spec, answer=FitAnswer(why_not="it is gone")).options == (need,)
    (other,) = expect(spec, answer=rows(need, more=100 * MIB)).options
    assert other.source == FROM_TOOL
    assert 99 * MIB < other.total - need.total < 103 * MIB
    assert sum(other.parts.values()) == other.total


def placed_rows(need: Any, device: int = 0, host: int = 0) -> FitAnswer:
    """What the tool would say of this need, with so much more of weights on each side."""
    found = []
    for name, more in (("Host", host), *((f"Vulkan{number}", device) for number in range(len(need.devices)))):
        share = need.shares[RAM if name == "Host" else need.devices[int(name[-1])]]
        sizes = (share.get("weights", 0) // MIB * MIB + more, share.get("kv cache", 0), share.get("compute", 0))
        found.append(FitRow(name, "host" if name == "Host" else "device", *sizes))
    return FitAnswer(tuple(found))


@pytest.mark.parametrize("gpu", [CARD, APU], ids=lambda gpu: gpu.name)
def test_what_the_tool_says_of_a_device_and_of_main_memory_counts_there(path: Path, gpu: Device) -> None:
    spec = spec_of(path)
    (need,) = expect(spec, gpu).options
    assert expect(spec, gpu, answer=placed_rows(need)).options == (need,)
    cases = [(300, 0), (0, 100), (-20, 100)]
    for device, host in cases:
        (better,) = expect(spec, gpu, answer=placed_rows(need, device * MIB, host * MIB)).options
        moved = [(better.amounts[pool] - need.amounts[pool]) / MIB for pool in (gpu.id, RAM)]
        assert moved == [pytest.approx(device, abs=3), pytest.approx(host, abs=3)]
        assert better.amounts == {pool: sum(share.values()) for pool, share in better.shares.items()}
        assert sum(better.parts.values()) == better.total


def test_of_several_cards_the_sums_count(path: Path) -> None:
    *alone, both = expect(spec_of(path), *TWO).options
    answer = placed_rows(both, 150 * MIB, 40 * MIB)
    *better_alone, better = expect(spec_of(path), *TWO, answer=answer).options
    a, b = (card.id for card in TWO)
    more = {pool: (better.amounts[pool] - both.amounts[pool]) / MIB for pool in both.amounts}
    assert more[RAM] == pytest.approx(40, abs=3)
    assert more[a] + more[b] == pytest.approx(300, abs=8)
    assert more[a] > 2 * more[b], "divided as the estimate divides it: the first has three times the memory"
    for one, before in zip(better_alone, alone, strict=True):
        [gpu] = one.devices
        assert (one.amounts[gpu] - before.amounts[gpu]) / MIB == pytest.approx(300, abs=8)


def test_a_program_that_sees_other_devices_than_accelerd(path: Path) -> None:
    (need,) = expect(spec_of(path), CARD).options
    (main,) = expect(spec_of(path)).options
    on_device = FitRow("Vulkan0", "device", need.parts["weights"] + 64 * MIB, 0, 0)
    (better,) = expect(spec_of(path), answer=FitAnswer((on_device,))).options
    assert list(better.amounts) == [RAM]
    assert better.parts["weights"] - main.parts["weights"] == pytest.approx(64 * MIB, abs=4 * MIB)
    nothing_there = FitAnswer((FitRow("Host", "host", 2 * need.parts["weights"], need.parts["kv cache"], 0),))
    (doubled,) = expect(spec_of(path), CARD, answer=nothing_there).options
    assert doubled.parts["weights"] == pytest.approx(2 * need.parts["weights"], rel=0.05)


def test_the_tool_knows_buffers_of_architectures_that_are_new(tmp_path: Path) -> None:
    pairs = {"general.architecture": string("brand-new"), "brand-new.block_count": u32(1)}
    spec = spec_of(write(tmp_path / "odd.gguf", pairs, {"blk.0.attn_q.weight": ((64, 64), 1)}))
    answer = FitAnswer((FitRow("Host", "host", 0, 0, 300 * MIB),))
    (need,) = expect(spec, answer=answer).options
    assert (need.source, need.parts["compute"]) == (FROM_TOOL, 302 * MIB)


@pytest.mark.parametrize(("said", "believed"), [(500, None), (3000, 3002), (20, 22)])
def test_buffers_full_of_logits_that_a_server_does_not_reserve_are_an_upper_bound(
    said: int, believed: int | None
) -> None:
    found = estimate(animal(vocabulary=200_000), EstimateSettings(context=4096))  # 390 MiB for 512 tokens' logits
    (need,) = options(found, (), gpu_layers=0, wanted_gpus=None)
    answer = FitAnswer((FitRow("Host", "host", need.parts["weights"], found.cache, said * MIB),))
    better = corrected(need, found, answer)
    assert better.parts["compute"] == (need.parts["compute"] if believed is None else believed * MIB)
    assert (better == need) == (believed is None)


# --- offers ---


def test_what_would_fit_is_offered_in_the_words_of_the_configuration(path: Path) -> None:
    forecaster = Forecaster()
    spec = spec_of(path, context=131072, gpu_layers=0)
    (need,) = forecaster.forecast(spec, spec, NEW, ()).options
    fixed = need.total - need.parts["kv cache"]
    text = forecaster.suggest_smaller(spec, {RAM: fixed + need.parts["kv cache"] // 3})
    assert text.startswith("it would fit with context = ")
    assert 'or with kv_cache_type = "q8_0" and context = ' in text
    assert forecaster.suggest_smaller(spec, {RAM: need.total}) == "it would fit with context = 131072"
    assert forecaster.suggest_smaller(spec, {RAM: MIB}) == ""
    assert forecaster.suggest_smaller(replace(spec, name="never seen"), {RAM: need.total}) == ""
    assert forecaster.suggest_smaller(replace(spec, memory=5), {RAM: need.total}) == ""


def advised(text: str, spec: ModelSpec, room: int) -> list[bool]:
    """Does the model fit with each of the settings that are offered?"""
    said = text.removeprefix("it would fit with ")
    assert said != text
    found = []
    for offer in said.split(", or with "):
        changed: dict[str, Any] = {}
        for setting in offer.split(" and "):
            if setting == "--cache-ram 0 in extra_args":
                changed |= {"extra_args": ("--cache-ram", "0")}
                continue
            key, value = setting.split(" = ")
            if key == "context":
                changed |= {"context": int(value)}
            elif key == "prompt_cache":
                assert value == '"auto"'
                changed |= {"prompt_cache": None}
            else:
                assert key == "kv_cache_type"
                changed |= {"cache_type_k": value.strip('"'), "cache_type_v": value.strip('"')}
        found.append(expect(replace(spec, **changed)).options[0].total <= room)
    return found


@pytest.mark.parametrize(
    ("more", "size", "first"),
    [
        ({"prompt_cache": 20 * GIB}, 0, 'prompt_cache = "auto"'),
        ({"extra_args": ("--cache-ram", "20480")}, 0, "--cache-ram 0 in extra_args"),
        ({"prompt_cache": 20 * GIB, "context": 1 << 27}, 0, 'prompt_cache = "auto" and context = '),
        ({"prompt_cache": 64 * MIB, "context": 16384}, 32 * MIB, 'prompt_cache = "auto"'),
        ({"context": 1 << 27}, 64 * GIB, "context = "),
    ],
)
def test_advice_that_is_followed_works(path: Path, more: dict[str, Any], size: int, first: str) -> None:
    forecaster = Forecaster(machine=lambda: "x86_64")
    trained = ModelReader().read(str(path)).number("context_length")
    spec = spec_of(path, **{"context": 4096, "gpu_layers": 0, **more})
    bare = replace(spec, prompt_cache=None, extra_args=(), context=min(spec.tokens or 0, trained))
    room = expect(bare).options[0].total + size
    assert forecaster.forecast(spec, spec, NEW, ()).options[0].total > room
    text = forecaster.suggest_smaller(spec, {RAM: room})
    assert text.startswith(f"it would fit with {first}")
    assert all(advised(text, spec, room)), text
    assert all(int(one.partition(",")[0].split()[0]) <= trained for one in text.split("context = ")[1:])


def test_memory_that_is_shared_with_the_processor_is_offered_once(path: Path) -> None:
    forecaster = Forecaster()
    spec = spec_of(path, context=131072)
    (need,) = forecaster.forecast(spec, spec, NEW, (APU,)).options
    alone = {RAM: need.amounts[RAM], APU.id: need.amounts[APU.id]}
    own = sum(pool.total for pool in APU.pools if pool.name == "vram")
    beyond = need.amounts[APU.id] - own
    assert beyond > 0
    assert "context = 131072" not in forecaster.suggest_smaller(spec, alone).split(",")[0]
    assert forecaster.suggest_smaller(spec, {**alone, RAM: alone[RAM] + beyond}) == "it would fit with context = 131072"


# --- the engine ---


def test_a_forecast_is_provisional_where_asking_the_program_will_make_it_better(path: Path, tmp_path: Path) -> None:
    server = LlamaServer(LlamaServerSettings(binary=str(tmp_path / "none")), cache=tmp_path)
    assert asked(server, spec_of(path), ask=False).provisional
    assert not asked(server, spec_of(path)).provisional, "it could not be asked: nothing better will come"
    assert not asked(server, spec_of(path, memory=5), ask=False).provisional
    assert not asked(server, spec_of(path, home="toolbox", container="box"), ask=False).provisional
    assert not asked(server, spec_of(None, model="org/repo"), ask=False).provisional


def test_the_real_programs_are_asked(path: Path, llama_server: str, tmp_path: Path) -> None:
    server = LlamaServer(LlamaServerSettings(binary=llama_server), cache=tmp_path)
    spec = spec_of(path, context=4096)
    quick, sure = asked(server, spec, ask=False), asked(server, spec)
    assert (quick.key, len(sure.key)) == ("", 64)
    assert (quick.provisional, sure.provisional) == (True, False)
    assert sure.options[0].source == FROM_TOOL  # the margin is not needed for so small a model
    assert sure.options[0].total < quick.options[0].total
    assert asked(server, spec, ask=False) == sure  # what was asked once is known
    changed = asked(server, replace(spec, context=2048), ask=False)
    assert (changed.key, changed.provisional) == ("", True)
    asked(server, spec)
    assert server.suggest_smaller(spec, {RAM: quick.options[0].total}) == "it would fit with context = 4096"


def test_a_program_that_cannot_be_asked_leaves_the_estimate(path: Path, tmp_path: Path) -> None:
    server = LlamaServer(LlamaServerSettings(binary=str(tmp_path / "none")), cache=tmp_path)
    found = asked(server, spec_of(path))
    assert (found.key, found.options[0].source) == ("", FROM_HEADER)
    missing = asked(server, spec_of(tmp_path / "none.gguf"))
    assert missing.options[0].total == 0

    async def fixed(spec: ModelSpec) -> FixedServer:
        return FixedServer(Endpoint(port=1), ("run",), "container x")

    elsewhere = LlamaServer(LlamaServerSettings(), places=fixed)
    assert asked(elsewhere, spec_of(path)).options[0].source == FROM_HEADER


# --- the prompt cache ---


def test_a_prompt_cache_is_for_so_many_conversations_and_no_more_than_the_program_takes(tmp_path: Path) -> None:
    small = expect(spec_of(make_model(tmp_path), context=1024))
    assert small.spare_cache == 64 * MIB, "a model of 250 kB has no use for 8 GiB"
    pairs = {
        "general.architecture": string("llama"), "llama.block_count": u32(4), "llama.embedding_length": u32(1024),
        "llama.attention.head_count": u32(8), "llama.context_length": u32(1 << 20),
    }  # fmt: skip
    tensors = {f"blk.{layer}.attn_{name}.weight": ((64, 64), 1) for layer in range(4) for name in "qkv"}
    path = write(tmp_path / "wide.gguf", pairs, tensors)
    for context in (16384, 262144):
        found = expect(spec_of(path, context=context))
        assert found.spare_cache == min(8 * GIB, 32 * found.options[0].parts["kv cache"])
        assert expect(spec_of(path, context=context // 4, parallel=4)).spare_cache == max(
            64 * MIB, min(8 * GIB, 8 * found.options[0].parts["kv cache"])
        )
    assert expect(spec_of(path, prompt_cache=GIB)).spare_cache == 0
    assert expect(spec_of(path, prompt_cache=GIB)).options[0].parts["prompt cache"] == GIB
    assert expect(spec_of(path, prompt_cache=0)).options[0].cache == 0
