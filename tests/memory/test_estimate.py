"""Estimates from headers in memory: what each kind of layer keeps, held against sums made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from accelerd.estimate.compute import MARGIN
from accelerd.estimate.estimate import PROGRAM, EstimateSettings, estimate
from accelerd.estimate.gguf import Header
from accelerd.estimate.model_facts import facts
from accelerd.estimate.tensor_places import HOST
from accelerd.estimate.tensors import GgufModel, Tensor
from tests.memory.animals import MIB, alone, animal, tensor

NOTHING = GgufModel(Header(3, 0), {}, ())


def with_tensors(model: GgufModel, more: dict[str, Tensor], without: str = "never") -> GgufModel:
    kept = {name: one for name, one in model.tensors.items() if without not in name}
    return replace(model, tensors={**kept, **more})


def test_weights_are_every_tensor_once() -> None:
    model = animal()
    found = alone(model)
    assert found.weights == model.weights
    assert found.total == found.weights + found.cache + found.compute + found.output + found.program


def test_keys_and_values_of_grouped_heads() -> None:
    model = animal(layers=4, kv_heads=2, head=64)
    assert estimate(model, EstimateSettings(context=4096)).cache == 4 * 4096 * 2 * 64 * 2 * 2
    assert estimate(model, EstimateSettings(context=4097)).cache == 4 * 4352 * 2 * 64 * 2 * 2  # cells come in 256
    small = estimate(model, EstimateSettings(context=4096, type_k="q8_0", type_v="q4_0"))
    assert small.cache == 4 * 4096 * (2 * 64 // 32 * 34 + 2 * 64 // 32 * 18)
    assert (
        estimate(model, EstimateSettings(context=0)).cache == 131072 // 4096 * estimate(model, EstimateSettings()).cache
    )


def test_each_slot_has_its_own_cells() -> None:
    model = animal()
    assert (
        estimate(model, EstimateSettings(context=4000, slots=4)).cache
        == estimate(model, EstimateSettings(context=4096)).cache
    )
    one = estimate(model, EstimateSettings(context=1000)).cache
    assert estimate(model, EstimateSettings(context=4 * 1000, slots=4, unified=True)).cache == one * 4096 // 1024
    assert estimate(model, EstimateSettings(context=4 * 1100, slots=4)).cache == 4 * one * 1280 // 1024


def test_heads_that_differ_from_layer_to_layer() -> None:
    model = animal(layers=3, attention__head_count_kv=(2, 0, 1), head=64)
    found = estimate(model, EstimateSettings(context=1024))
    assert [cache for _, cache in found.layers] == [1024 * 2 * 64 * 4, 0, 1024 * 64 * 4]


def test_layers_with_a_window_keep_no_more_than_it() -> None:
    model = animal("gemma3", layers=6, attention__sliding_window=512)
    found = estimate(model, EstimateSettings(context=32768, ubatch=512))
    row = 2 * 64 * 2 * 2
    assert [cache // row for _, cache in found.layers] == [1024] * 5 + [32768]
    slots = estimate(model, EstimateSettings(context=32768, slots=4, unified=True))
    assert [cache // row for _, cache in slots.layers] == [4 * 512 + 512] * 5 + [32768]
    assert {cache // row for _, cache in estimate(model, EstimateSettings(context=32768, window_full=True)).layers} == {
        32768
    }


def test_a_pattern_of_windows_is_taken_from_the_header() -> None:
    pattern = (True, False, True, False)
    listed = animal("gemma3", attention__sliding_window=512, attention__sliding_window_pattern=pattern)
    assert [layer.window for layer in facts(listed).layers] == list(pattern)
    every = animal("gemma3", attention__sliding_window=512, attention__sliding_window_pattern=2)
    assert [layer.window for layer in facts(every).layers] == [True, False, True, False]
    assert not any(layer.window for layer in facts(animal("llama", attention__sliding_window=512)).layers)


def latent() -> GgufModel:
    """Layers whose keys and values are kept compressed, as DeepSeek's are."""
    base = animal("deepseek2", layers=2, heads=8, attention__kv_lora_rank=256, attention__key_length_mla=96,
                  attention__value_length_mla=64, attention__key_length=288, attention__value_length=256,
                  rope__dimension_count=32)  # fmt: skip
    more = {}
    for index in range(2):
        at = f"blk.{index}."
        more[f"{at}attn_q.weight"] = tensor(512, 8 * 96)
        more[f"{at}attn_kv_a_mqa.weight"] = tensor(512, 288)
        more[f"{at}attn_kv_a_norm.weight"] = tensor(256, type="f32")
        more[f"{at}attn_k_b.weight"] = tensor(64, 256, 8)
        more[f"{at}attn_v_b.weight"] = tensor(256, 64, 8)
    kept = with_tensors(base, more, without="attn_k.weight")
    return with_tensors(kept, {}, without="attn_v.weight")


def test_compressed_keys_are_kept_once_for_keys_and_values() -> None:
    found = alone(latent(), EstimateSettings(context=4096))
    assert found.cache == 2 * 4096 * 288 * 2
    assert found.compute > MIB


def mixed() -> GgufModel:
    """Every second layer has a state instead of keys."""
    base = animal("granitehybrid", layers=4, ssm__conv_kernel=4, ssm__inner_size=1024, ssm__state_size=128,
                  ssm__time_step_rank=16, ssm__group_count=1)  # fmt: skip
    more = {}
    for index in (0, 2):
        at = f"blk.{index}."
        more[f"{at}ssm_in.weight"] = tensor(512, 2 * 1024 + 2 * 128 + 16)
        more[f"{at}ssm_conv1d.weight"] = tensor(4, 1024 + 2 * 128, type="f32")
        more[f"{at}ssm_out.weight"] = tensor(1024, 512)
    kept = {name: one for name, one in base.tensors.items()
            if not (name.startswith(("blk.0.attn_", "blk.2.attn_")) and "norm" not in name)}  # fmt: skip
    return replace(base, tensors={**kept, **more})


def test_a_state_is_of_one_size_whatever_the_context() -> None:
    state = 4 * (3 * (1024 + 2 * 128) + 128 * 1024)
    keys = 2 * 64 * 2 * 2
    for context in (1024, 16384):
        found = estimate(mixed(), EstimateSettings(context=context))
        assert [cache for _, cache in found.layers] == [state, context * keys, state, context * keys]
    slots = estimate(mixed(), EstimateSettings(context=4096, slots=4))
    assert next(cache for _, cache in slots.layers) == 4 * state


def test_an_encoder_keeps_nothing() -> None:
    found = alone(animal("bert"), EstimateSettings(context=2048, embeddings=True, ubatch=2048))
    assert found.cache == 0
    assert found.compute > 2048 * 512 * 4


def test_a_head_that_is_the_embedding_lies_in_both_places() -> None:
    """On a GPU the head must be, in main memory the embedding."""
    model = animal(tied=True)
    host, gpu = estimate(model, EstimateSettings()).placed((5,))
    assert host.weights == model.tensors["token_embd.weight"].size
    assert gpu.weights == model.weights
    again = alone(animal(tied=True), EstimateSettings(repacked=frozenset({"f16"})))
    assert again.weights == model.weights + model.tensors["token_embd.weight"].size


def test_layers_are_divided_with_what_belongs_to_them() -> None:
    model = animal(layers=4)
    found = estimate(model, EstimateSettings(context=4096, backend="cuda"))
    host, first, second = found.placed((2, 3))
    assert first.cache == second.cache == found.cache // 2
    assert host.cache == 0
    assert host.weights + first.weights + second.weights == found.placed(())[0].weights
    assert second.weights - first.weights == model.tensors["output.weight"].size + 512 * 4
    assert first.program == second.program == 400 * MIB
    assert host.program == PROGRAM + 160 * 32000
    part_host, part = found.placed((2,))
    assert (part_host.cache, part.cache) == (found.cache * 3 // 4, found.cache // 4)
    nothing = estimate(model, EstimateSettings(offload_cache=False)).placed((5,))
    assert (nothing[0].cache, nothing[1].cache) == (found.cache, 0)


def test_experts_can_stay_in_main_memory() -> None:
    model = animal("qwen3moe", experts=8)
    all_host, all_gpu = estimate(model, EstimateSettings()).placed((5,))
    host, gpu = estimate(model, EstimateSettings(overrides=((r"blk\.[0-2]\.ffn_.*_exps", HOST),))).placed((5,))
    moved = sum(one.size for name, one in model.tensors.items() if "_exps" in name and not name.startswith("blk.3"))
    assert host.weights - all_host.weights == all_gpu.weights - gpu.weights == moved


def test_scores_are_kept_for_every_token_where_they_are_wanted() -> None:
    model = animal(vocabulary=150_000)
    few, every = (alone(model, EstimateSettings(few_outputs=few)).compute for few in (True, False))
    assert every - few > 512 * 150_000 * 4 * 9 // 10
    assert alone(model, EstimateSettings(embeddings=True)).compute > every - MIB


def test_without_flash_attention_all_scores_lie_side_by_side() -> None:
    model = animal(heads=8)
    with_it, without = (alone(model, EstimateSettings(context=16384, flash=flash)).compute for flash in ("on", "off"))
    assert without - with_it > 16384 * 512 * 8 * 4 * 9 // 10
    assert alone(animal("grok"), EstimateSettings(context=16384, flash="on")).compute > 16384 * 512 * 8 * 4


@pytest.mark.parametrize(("flash", "size"), [("on", 2), ("off", 4)])
def test_main_memory_has_the_masks_of_layers_on_gpus_too(flash: Any, size: int) -> None:
    model = animal("gemma3", layers=6, attention__sliding_window=512)  # only the last layer has no window
    small, large = (
        estimate(model, EstimateSettings(context=context, flash=flash)).placed((6,))[0] for context in (16384, 32768)
    )
    assert large.compute - small.compute == size * 512 * 16384


def test_a_draft_model_has_weights_a_cache_and_a_buffer_of_its_own() -> None:
    small = animal(layers=1, width=256, heads=4, kv_heads=4)
    own = alone(small, EstimateSettings(context=4096))
    share = estimate(animal(), EstimateSettings(context=4096, type_k="q8_0", type_v="q8_0"), draft=small).placed(())[0]
    assert share.draft == own.total - own.program
    host, gpu = estimate(animal(), EstimateSettings(context=4096), draft=small).placed((5,))
    assert gpu.draft > small.weights - small.tensors["token_embd.weight"].size
    assert 0 < host.draft < own.total - own.program


def test_a_projector_counts_with_its_buffer() -> None:
    sizes = {"embedding_length": 1024, "feed_forward_length": 4096, "image_size": 336, "patch_size": 14}
    values = {"general.architecture": "clip", **{f"clip.vision.{name}": size for name, size in sizes.items()}}
    projector = GgufModel(Header(3, 1, values), {"v.blk.0.attn_q.weight": tensor(1024, 1024)}, ())
    host, gpu = estimate(animal(), EstimateSettings(), projector).placed((5,))
    assert (host.projector, gpu.projector > 2 * 1024 * 1024 + 32 * MIB) == (0, True)
    odd = estimate(animal(), EstimateSettings(), replace(projector, header=Header(3, 1))).placed(())[0]
    assert odd.projector == 2 * 1024 * 1024 + 32 * MIB


def test_draft_layers_of_the_model_itself_are_not_loaded_where_nothing_uses_them() -> None:
    model = animal("qwen3next", layers=3, nextn_predict_layers=1)
    assert len(estimate(model, EstimateSettings()).layers) == 2
    assert alone(model).weights == model.weights - sum(
        one.size for name, one in model.tensors.items() if name.startswith("blk.2.")
    )


def test_a_new_architecture_is_estimated_by_its_tensors() -> None:
    known, new = (estimate(animal(name), EstimateSettings()) for name in ("llama", "brand-new"))
    assert new.placed(()) == known.placed(())
    states = replace(mixed(), header=structs.replace(mixed().header, values={
        key.replace("granitehybrid", "new"): value if key != "general.architecture" else "new"
        for key, value in mixed().header.values.items()}))  # fmt: skip
    assert estimate(states, EstimateSettings()).placed(()) == estimate(mixed(), EstimateSettings()).placed(())


def test_the_widest_layer_decides_about_the_compute_buffer() -> None:
    """512 tokens of f32: five rows of the width, three of the feed-forward, masks, and the margin."""
    found = alone(animal(width=512, inner=4096), EstimateSettings(context=4096))
    assert found.compute == 4 * 512 * (5 * 512 + 3 * 4096) + 2 * 512 * 4096 + MARGIN
    experts = alone(animal("qwen3moe", width=512, inner=4096, experts=8), EstimateSettings(context=4096))
    assert experts.compute == 4 * 512 * (5 * 512 + 2 * (3 * 4096 + 512)) + 2 * 512 * 4096 + MARGIN
    state = 4 * 512 * (5 * 512 + 5 * 1024) + 2 * 512 * 4096 + MARGIN
    assert alone(mixed(), EstimateSettings(context=4096)).compute == state


def test_gpus_that_take_turns_have_several_inputs_and_main_memory_only_those() -> None:
    found = estimate(animal(layers=4), EstimateSettings(context=4096))
    host, gpu = (share.compute for share in found.placed((5,)))
    assert host == 2 * 4 * 512 * 512 + 2 * 512 * 4096
    assert gpu == found.placed(())[0].compute
    host_of_two, first, second = (share.compute for share in found.placed((2, 3)))
    assert host_of_two == 4 * host
    assert first == second == gpu + 3 * host
    part = found.placed((2,))
    assert part[1].compute == gpu + 2 * 512 * 1024, "the largest tensor that stays in main memory is copied there"


def test_a_header_that_says_nothing_needs_almost_nothing() -> None:
    found = alone(NOTHING, EstimateSettings(context=4096))
    assert (found.weights, found.cache) == (0, 0)
    assert found.compute <= MARGIN


@pytest.mark.parametrize("slots", [1, 3])
def test_a_batch_is_never_larger_than_the_context(slots: int) -> None:
    small = alone(animal(), EstimateSettings(context=256, slots=slots, ubatch=2048))
    assert small.compute < alone(animal(), EstimateSettings(context=8192, slots=slots, ubatch=2048)).compute / 2
