"""Shapes of models that keep a state instead of a cache, in all of their layers or in most."""

from __future__ import annotations

from typing import Any

from gguf import GGMLQuantizationType as Type

from tests.memory.zoo_file import Content
from tests.memory.zoo_shapes import Maker


def mamba_mixer(m: Maker, layer: int, inner: int, state: int, rank: int, conv: int, *, norms: bool = False) -> None:
    """The first Mamba's."""
    b = f"blk.{layer}."
    m.weight(b + "ssm_in", m.d, 2 * inner)
    m.add(b + "ssm_conv1d.weight", conv, inner)
    m.add(b + "ssm_conv1d.bias", inner)
    m.weight(b + "ssm_x", inner, rank + 2 * state)
    m.add(b + "ssm_dt.weight", rank, inner)
    m.add(b + "ssm_dt.bias", inner)
    if norms:
        m.norms(layer, "ssm_dt_norm", size=rank)
        m.norms(layer, "ssm_b_norm", "ssm_c_norm", size=state)
    m.add(b + "ssm_a", state, inner)
    m.add(b + "ssm_d", inner)
    m.weight(b + "ssm_out", inner, m.d)


def mamba2_mixer(m: Maker, layer: int, inner: int, state: int, heads: int, groups: int, conv: int) -> None:
    b = f"blk.{layer}."
    wide = inner + 2 * groups * state
    m.weight(b + "ssm_in", m.d, inner + wide + heads)
    m.add(b + "ssm_conv1d.weight", conv, wide)
    m.add(b + "ssm_conv1d.bias", wide)
    m.add(b + "ssm_dt.bias", heads)
    m.add(b + "ssm_a", 1, heads)
    m.add(b + "ssm_d", 1, heads)
    m.add(b + "ssm_norm.weight", inner // groups, groups)
    m.weight(b + "ssm_out", inner, m.d)


def mamba(**_: Any) -> Content:
    m = Maker("mamba", 768, 24, 0, 0, 0, 0)
    inner, state, rank, conv = 1536, 16, 48, 4
    m.ends(50280, tied=True)
    m.set(ssm__conv_kernel=conv, ssm__inner_size=inner, ssm__state_size=state, ssm__time_step_rank=rank)
    for layer in range(m.layers):
        m.norms(layer, "attn_norm")
        mamba_mixer(m, layer, inner, state, rank, conv)
    return m.file


def mamba2(**_: Any) -> Content:
    m = Maker("mamba2", 768, 24, 0, 0, 0, 0)
    inner, state, heads, conv = 1536, 128, 24, 4
    m.ends(50288)
    m.set(ssm__conv_kernel=conv, ssm__inner_size=inner, ssm__state_size=state, ssm__time_step_rank=heads)
    m.set(ssm__group_count=1)
    for layer in range(m.layers):
        m.norms(layer, "attn_norm")
        mamba2_mixer(m, layer, inner, state, heads, 1, conv)
    return m.file


def jamba(**_: Any) -> Content:
    """One layer of four has attention, one of two has experts."""
    kv = [2 if layer % 4 == 2 else 0 for layer in range(8)]
    m = Maker("jamba", 1024, 8, 1536, 8, kv, 128)
    inner, state, rank, conv, experts = 2048, 16, 64, 4, 8
    m.type = Type.Q8_0
    m.ends(65536)
    m.set(ssm__conv_kernel=conv, ssm__inner_size=inner, ssm__state_size=state, ssm__time_step_rank=rank)
    m.set(expert_count=experts, expert_used_count=2)
    for layer in range(m.layers):
        m.norms(layer, "attn_norm", "ffn_norm")
        if kv[layer]:
            m.attention(layer)
        else:
            mamba_mixer(m, layer, inner, state, rank, conv, norms=True)
        if layer % 2:
            m.experts(layer, experts, m.ff)
        else:
            m.dense(layer)
    return m.file


def granitehybrid(**_: Any) -> Content:
    kv = [4 if layer % 5 == 3 else 0 for layer in range(15)]
    m = Maker("granitehybrid", 768, 15, 2048, 12, kv, 64)
    inner, state, heads, conv = 1536, 128, 48, 4
    m.ends(49152, tied=True)
    m.set(ssm__conv_kernel=conv, ssm__inner_size=inner, ssm__state_size=state, ssm__time_step_rank=heads)
    m.set(ssm__group_count=1)
    for layer in range(m.layers):
        m.norms(layer, "attn_norm", "ffn_norm")
        if kv[layer]:
            m.attention(layer)
        else:
            mamba2_mixer(m, layer, inner, state, heads, 1, conv)
        m.dense(layer)
    return m.file


def falcon_h1(**_: Any) -> Content:
    """Every layer has both."""
    m = Maker("falcon-h1", 1024, 12, 2048, 8, 2, 64)
    inner, state, heads, conv = 1536, 128, 24, 4
    m.ends(32784)
    m.set(ssm__conv_kernel=conv, ssm__inner_size=inner, ssm__state_size=state, ssm__time_step_rank=heads)
    m.set(ssm__group_count=1)
    for layer in range(m.layers):
        b = f"blk.{layer}."
        m.norms(layer, "attn_norm")
        mamba2_mixer(m, layer, inner, state, heads, 1, conv)
        m.attention(layer)
        m.add(b + "ffn_norm", m.d)  # sic: without .weight
        m.dense(layer)
    return m.file


def lfm2(**_: Any) -> Content:
    """Short convolutions, and attention in one layer of three."""
    kv = [8 if layer % 3 == 2 else 0 for layer in range(12)]
    m = Maker("lfm2", 1024, 12, 4608, 16, kv, 64)
    m.ends(65536, tied=True)
    m.file.tensors = [t for t in m.file.tensors if t.name != "output_norm.weight"]
    m.add("token_embd_norm.weight", m.d)
    m.set(shortconv__l_cache=3)
    for layer in range(m.layers):
        b = f"blk.{layer}."
        m.norms(layer, "attn_norm", "ffn_norm")
        if kv[layer]:
            m.attention(layer, qk_norm=True)
        else:
            m.add(b + "shortconv.conv.weight", 3, m.d)
            m.weight(b + "shortconv.in_proj", m.d, 3 * m.d)
            m.weight(b + "shortconv.out_proj", m.d, m.d)
        m.dense(layer)
    return m.file


def delta_net(m: Maker, layer: int, *, legacy: bool) -> None:
    """Linear attention of Qwen3-Next and Qwen3.5."""
    b = f"blk.{layer}."
    heads_k, heads_v, head, conv = 8, 16, 128, 4
    key, value = heads_k * head, heads_v * head
    m.weight(b + "attn_qkv", m.d, 2 * key + value)
    m.weight(b + "attn_gate", m.d, value)
    m.add(b + "ssm_conv1d.weight", conv, 2 * key + value)
    m.add(b + "ssm_dt.bias", heads_v)
    m.add(b + "ssm_a", heads_v)
    if legacy:
        m.weight(b + "ssm_ba", m.d, 2 * heads_v)
    else:
        m.weight(b + "ssm_beta", m.d, heads_v)
        m.weight(b + "ssm_alpha", m.d, heads_v)
    m.norms(layer, "ssm_norm", size=head)
    m.weight(b + "ssm_out", value, m.d)
    m.set(ssm__conv_kernel=conv, ssm__inner_size=value, ssm__state_size=head, ssm__time_step_rank=heads_v)
    m.set(ssm__group_count=heads_k)


def qwen_linear(arch: str, *, extra: int = 0) -> Content:
    """Three layers of four with linear attention; `extra`: layers that predict further tokens, which few ask for."""
    m = Maker(arch, 1024, 8 + extra, 2048, 8, 2, 128)
    experts, ff = 32, 256
    m.ends(32768)
    m.set(expert_count=experts, expert_used_count=8, expert_feed_forward_length=ff)
    m.set(expert_shared_feed_forward_length=ff, rope__dimension_count=32)
    if arch == "qwen35moe":
        m.set(rope__dimension_sections=[11, 11, 10, 0])
    if extra:
        m.set(nextn_predict_layers=extra)
    for layer in range(m.layers):
        m.norms(layer, "attn_norm", "post_attention_norm")
        if layer % 4 == 3 or layer >= m.layers - extra:
            m.attention(layer, qk_norm=True, query=2)
        else:
            delta_net(m, layer, legacy=arch == "qwen3next")
        m.experts(layer, experts, ff)
        m.add(f"blk.{layer}.ffn_gate_inp_shexp.weight", m.d)
        m.dense(layer, ff, "_shexp")
        if layer >= m.layers - extra:
            m.weight(f"blk.{layer}.nextn.eh_proj", 2 * m.d, m.d)
            m.norms(layer, "nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm")
    return m.file


def qwen3next(**_: Any) -> Content:
    return qwen_linear("qwen3next")


def qwen35moe(**_: Any) -> Content:
    return qwen_linear("qwen35moe", extra=1)
