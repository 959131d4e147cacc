"""Whatever a header claims: an estimate comes out, nothing of it is negative, and more asked for is never less."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from accelerd.devices.model import usable
from accelerd.estimate.estimate import EstimateSettings, estimate
from accelerd.estimate.gguf import Header
from accelerd.estimate.placing import divided, options
from accelerd.estimate.tensor_places import HOST
from accelerd.estimate.tensors import GgufModel, Tensor
from tests.memory.animals import alone, animal
from tests.memory.test_placing import APU, CPU, card

QUICK = settings(max_examples=60)
KEYS = [
    "block_count", "embedding_length", "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.sliding_window", "attention.sliding_window_pattern", "attention.kv_lora_rank",
    "attention.key_length_mla", "attention.value_length_mla", "expert_count", "expert_used_count", "context_length",
    "expert_group_count", "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.time_step_rank",
    "ssm.group_count", "wkv.head_size", "shortconv.l_cache", "nextn_predict_layers", "rope.dimension_count",
    "attention.shared_kv_layers", "pooling_type",
]  # fmt: skip
KINDS = ["llama", "gemma3", "deepseek2", "mamba", "jamba", "granitehybrid", "falcon-h1", "lfm2", "qwen3next", "rwkv7",
         "rwkv6", "bert", "gpt-oss", "nonsense", ""]  # fmt: skip
NAMES = [
    "attn_norm", "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "attn_q_norm", "attn_k_norm", "attn_kv_a_mqa",
    "attn_kv_b", "attn_q_a", "ffn_norm", "ffn_up", "ffn_gate", "ffn_down", "ffn_gate_inp", "ffn_up_exps",
    "ffn_gate_exps", "ffn_gate_up_exps", "ffn_down_exps", "ffn_up_shexp", "ffn_gate_inp_shexp", "ssm_in", "ssm_x",
    "ssm_conv1d", "ssm_out", "ssm_norm", "ssm_dt_norm", "ssm_ba", "shortconv.in_proj", "time_mix_key", "time_mix_a1",
    "time_mix_w1", "time_mix_g1", "channel_mix_key", "post_attention_norm", "post_ffw_norm", "attn_output_norm",
    "layer_output_norm",
]  # fmt: skip

# Also layers that are not counted, and digits that are no number: "²".isdigit() is true.
LAYERS = ["0", "1", "2", "7", "99999", "123456", "\u00b2", "\u0663", "-1", "1_0", ""]

number = st.one_of(st.integers(0, 300), st.sampled_from([512, 4096, 1 << 20, 1 << 40, (1 << 64) - 1]))
claim = st.one_of(number, number.map(lambda one: -one), st.booleans(), st.floats(), st.text(max_size=3),
                  st.lists(number, max_size=5).map(tuple))  # fmt: skip
LEAST = 2048  # tokens of a context from which on a batch is of one size, and what is computed grows with it

ROWS = [0, 1, 2, 3, 64, 96, 512, 1 << 20, 1 << 62, (1 << 64) - 1]
shape = st.lists(st.sampled_from(ROWS), min_size=1, max_size=3).map(tuple)


@st.composite
def models(draw: st.DrawFn) -> GgufModel:
    kind = draw(st.sampled_from(KINDS))
    values: dict[str, Any] = {"general.architecture": kind}
    for key in draw(st.lists(st.sampled_from(KEYS), unique=True)):
        values[f"{kind}.{key}"] = draw(claim)
    tensors = {}
    for index in draw(st.lists(st.sampled_from(LAYERS), unique=True, max_size=3)):
        for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=14)):
            tensors[f"blk.{index}.{name}.weight"] = Tensor(draw(shape), "f16", draw(st.integers(0, 1 << 40)))
    for name in draw(st.lists(st.sampled_from(["token_embd", "output", "output_norm", "cls"]), unique=True)):
        tensors[f"{name}.weight"] = Tensor(draw(shape), "f16", draw(st.integers(0, 1 << 40)))
    return GgufModel(Header(3, len(tensors), values, {"tokenizer.ggml.tokens": draw(number)}), tensors, ())


wanted = st.builds(
    EstimateSettings,
    context=st.sampled_from([0, 1, 256, 5000, 1 << 20, 1 << 62]),
    slots=st.integers(0, 9),
    unified=st.booleans(),
    type_k=st.sampled_from(["f16", "q8_0", "q4_0", "f32", "unheard of"]),
    type_v=st.sampled_from(["f16", "q8_0"]),
    flash=st.sampled_from(["on", "off", "auto"]),
    ubatch=st.sampled_from([1, 7, 512]),
    embeddings=st.booleans(),
    rerank=st.booleans(),
    offload_cache=st.booleans(),
    overrides=st.sampled_from([(), (("_exps", HOST),), ((r"blk\.1\.", "b"), ("output|token", "a"), (".", HOST))]),
    split_mode=st.sampled_from(["layer", "row", "tensor"]),
)


def whole(model: GgufModel, want: EstimateSettings) -> int:
    found = alone(model, want)
    return found.total - found.program


@QUICK
@given(models(), wanted, st.lists(st.integers(0, 5), max_size=3), st.integers(0, 5))
def test_any_header_gives_an_estimate_and_nothing_of_it_is_negative(
    model: GgufModel, want: EstimateSettings, rooms: list[int], layers: int
) -> None:
    found = estimate(model, want)
    counts = divided(min(layers, len(found.layers) + 1), rooms) if rooms else []
    ids, parts = ["a", "b", "c"][: len(counts)], [room + 1 for room in rooms]
    shares = found.placed(counts, ids, parts)
    assert len(shares) == len(counts) + 1
    for share in shares:
        assert all(size >= 0 for size in share.parts().values())
    again = estimate(replace(model), want)
    assert again.placed(counts, ids, parts) == shares


@QUICK
@given(models(), models(), wanted, st.lists(st.integers(0, 5), max_size=3), st.integers(0, 5))
def test_what_is_loaded_beside_a_model_may_claim_anything_too(
    model: GgufModel, other: GgufModel, want: EstimateSettings, rooms: list[int], layers: int
) -> None:
    """An adapter of each of its tensors, a projector, a draft model."""
    added = {f"{name}.lora_a": tensor for name, tensor in model.tensors.items()}
    adapter = GgufModel(other.header, added, ())
    found = estimate(model, want, other, other, (adapter,))
    counts = divided(min(layers, len(found.layers) + 1), rooms) if rooms else []
    shares = found.placed(counts, ["a", "b", "c"][: len(counts)])
    assert all(size >= 0 for share in shares for size in share.parts().values())
    assert sum(share.lora for share in shares) >= sum(tensor.size for tensor in added.values())


@QUICK
@given(
    st.sampled_from(["llama", "gemma3", "qwen3moe", "bert", "unheard-of"]),
    st.integers(LEAST, 200_000),
    st.integers(LEAST, 200_000),
    st.integers(1, 8),
    st.sampled_from(["on", "off"]),
)
def test_more_context_and_more_slots_never_need_less(kind: str, one: int, two: int, slots: int, flash: Any) -> None:
    model = animal(kind, attention__sliding_window=1024, experts=8 if kind == "qwen3moe" else 0)
    small, large = sorted((one, two))
    base = EstimateSettings(context=small, flash=flash)
    assert estimate(model, base).cache <= estimate(model, structs.replace(base, context=large)).cache
    assert whole(model, base) <= whole(model, structs.replace(base, context=large))
    each = [estimate(model, structs.replace(base, context=small * count, slots=count)) for count in (slots, slots + 1)]
    assert each[0].cache <= each[1].cache


@QUICK
@given(st.integers(1, 6), st.integers(1, 100_000))
def test_however_it_is_divided_no_weight_and_no_cell_is_lost(layers: int, context: int) -> None:
    found = estimate(animal(layers=layers), EstimateSettings(context=context))
    (host,) = found.placed(())
    for first in range(layers + 2):
        for second in range(layers + 2 - first):
            shares = found.placed((first, second))
            assert sum(share.weights for share in shares) == host.weights
            assert sum(share.cache for share in shares) == host.cache


@QUICK
@given(models(), wanted, st.lists(st.sampled_from([0, 1, 1 << 33, 1 << 62]), max_size=4),
       st.sampled_from([None, 0, 5, 1 << 62, "all"]), st.sampled_from([None, (0,), (1 << 62,)]))  # fmt: skip
def test_whatever_a_header_claims_there_is_a_way_to_place_it(
    model: GgufModel, want: EstimateSettings, sizes: list[int], layers: int | str | None, left: tuple[int, ...] | None
) -> None:
    gpus = usable([card(slot, size) for slot, size in enumerate(sizes, 1)] + [APU, CPU])
    found = options(estimate(model, structs.replace(want, fit_target=left)), gpus, gpu_layers=layers, wanted_gpus=None)
    assert found
    assert all(amount >= 0 for need in found for amount in need.amounts.values())
