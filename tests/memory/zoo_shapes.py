"""The shapes of the zoo's models: for each architecture its settings and the tensors that llama.cpp looks for.

Scaled down from real models so that weights, KV cache and compute buffers all count for something.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gguf import GGMLQuantizationType as Type

from tests.memory.zoo_file import Content

Q = Type.Q4_K  # what most of the tensors of a file are stored in
BYTE_CHARS = [chr(b) for b in (*range(33, 127), *range(161, 173), *range(174, 256))]


def bpe(content: Content, vocab: int, merges: int = 0) -> None:
    """A vocabulary as GPT-2's, of which only the bytes and three special tokens can ever be met in a text."""
    chars = BYTE_CHARS + [chr(256 + n) for n in range(256 - len(BYTE_CHARS))]
    special = ["<|end|>", "<|start|>", "<|stop|>"]
    words = [f"Ġword{n}" for n in range(vocab - 259)]
    content.pairs |= {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [*chars, *special, *words],
        "tokenizer.ggml.token_type": [1] * 256 + [3] * 3 + [1] * len(words),
        "tokenizer.ggml.merges": [f"Ġword{n} {n % 10}" for n in range(max(merges, 1))],
        "tokenizer.ggml.bos_token_id": 257,
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.ggml.add_bos_token": False,
    }


def sentencepiece(content: Content, vocab: int) -> None:
    """A vocabulary with scores, as Gemma's."""
    words = [f"▁word{n}" for n in range(vocab - 259)]
    content.pairs |= {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(n) for n in range(len(words))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def wordpiece(content: Content, vocab: int) -> None:
    """BERT's: only its special tokens and single characters mean something."""
    chars = [chr(c) for c in range(33, 127)]
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"▁{c}" for c in chars), *chars]
    content.pairs |= {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [*known, *(f"word{n}" for n in range(vocab - len(known)))],
        "tokenizer.ggml.token_type": [3] * 5 + [1] * (vocab - 5),
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.seperator_token_id": 3,  # sic
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.mask_token_id": 4,
    }


class Maker:
    """A model in the making: the numbers that most architectures share, and the groups of tensors."""

    def __init__(self, arch: str, d: int, layers: int, ff: int, heads: int, kv: int | Sequence[int], head: int) -> None:
        self.d, self.layers, self.ff, self.heads, self.head = d, layers, ff, heads, head
        self.kv = [kv] * layers if isinstance(kv, int) else list(kv)
        self.file = Content(arch)
        self.type = Q
        self.add = self.file.add
        self.set = self.file.set
        self.set(
            context_length=131072,
            embedding_length=d,
            block_count=layers,
            feed_forward_length=ff,
            attention__head_count=heads,
            attention__head_count_kv=kv,
            attention__layer_norm_rms_epsilon=1e-5,
        )
        if head:
            self.set(attention__key_length=head, attention__value_length=head, rope__dimension_count=head)

    @property
    def finer(self) -> Type:
        """What the matrices are stored in that matter most."""
        return Type.Q6_K if self.type is Q else self.type

    def weight(self, name: str, *shape: int, type: Type | None = None) -> None:
        """A matrix in the file's type."""
        self.add(f"{name}.weight", *shape, type=type or self.type)

    def norms(self, layer: int, *names: str, size: int = 0) -> None:
        for name in names:
            self.add(f"blk.{layer}.{name}.weight", size or self.d)

    def ends(self, vocab: int, *, tied: bool = False, embedding: Type | None = None, merges: int = 0) -> None:
        """The vocabulary, its embedding and the output."""
        bpe(self.file, vocab, merges)
        self.matrices(vocab, tied=tied, embedding=embedding)

    def matrices(self, vocab: int, *, tied: bool = False, embedding: Type | None = None) -> None:
        self.weight("token_embd", self.d, vocab, type=embedding)
        self.add("output_norm.weight", self.d)
        if not tied:
            self.weight("output", self.d, vocab, type=self.finer)

    def attention(self, layer: int, *, bias: bool = False, qk_norm: bool = False, query: int = 1) -> None:
        """`query`: how wide q is, in times of what it would be; more than 1 where a gate is part of it."""
        b, q, kv = f"blk.{layer}.", self.heads * self.head, self.kv[layer] * self.head
        for name, out in (("attn_q", q * query), ("attn_k", kv), ("attn_v", kv)):
            self.weight(b + name, self.d, out, type=self.finer if name == "attn_v" else None)
            if bias:
                self.add(f"{b}{name}.bias", out)
        self.weight(b + "attn_output", q, self.d)
        if qk_norm:
            self.norms(layer, "attn_q_norm", "attn_k_norm", size=self.head)

    def dense(self, layer: int, ff: int = 0, suffix: str = "") -> None:
        ff = ff or self.ff
        self.weight(f"blk.{layer}.ffn_gate{suffix}", self.d, ff)
        self.weight(f"blk.{layer}.ffn_up{suffix}", self.d, ff)
        self.weight(f"blk.{layer}.ffn_down{suffix}", ff, self.d, type=self.finer)

    def experts(self, layer: int, count: int, ff: int, type: Type | None = None) -> None:
        b = f"blk.{layer}."
        self.add(b + "ffn_gate_inp.weight", self.d, count)
        self.weight(b + "ffn_gate_exps", self.d, ff, count, type=type)
        self.weight(b + "ffn_up_exps", self.d, ff, count, type=type)
        self.weight(b + "ffn_down_exps", ff, self.d, count, type=type or self.finer)


def llama(**options: Any) -> Content:
    """Also with experts, as Mixtral."""
    o = {"d": 1024, "layers": 12, "ff": 2816, "heads": 16, "kv": 4, "head": 64, "vocab": 32000, "experts": 0} | options
    m = Maker("llama", o["d"], o["layers"], o["ff"], o["heads"], o["kv"], o["head"])
    m.type = o.get("type", Q)
    m.ends(o["vocab"])
    m.add("rope_freqs.weight", o["head"] // 2)
    if o["experts"]:
        m.set(expert_count=o["experts"], expert_used_count=2)
    for layer in range(m.layers):
        m.norms(layer, "attn_norm", "ffn_norm")
        m.attention(layer)
        if o["experts"]:
            m.experts(layer, o["experts"], m.ff)
        else:
            m.dense(layer)
    return m.file


def adapter(*, rank: int, names: Sequence[str] = ("attn_q", "attn_v", "ffn_up"), **_: Any) -> Content:
    """A LoRA adapter for the first half of the layers of `llama` above."""
    base = llama()
    file = Content("llama", {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": float(rank)})
    for tensor in base.tensors:
        _, layer, name = ([*tensor.name.split("."), "", ""])[:3]
        if name in names and int(layer) < 6:
            file.add(f"{tensor.name}.lora_a", tensor.shape[0], rank, type=Type.F32)
            file.add(f"{tensor.name}.lora_b", rank, tensor.shape[1], type=Type.F16)
    return file


def qwen2(**_: Any) -> Content:
    """Qwen2.5-0.5B with fewer layers: rows that K-quants do not fit, biases, tied ends, a big vocabulary."""
    m = Maker("qwen2", 896, 8, 4864, 14, 2, 64)
    m.type = Type.Q5_0
    m.ends(151936, tied=True, embedding=Type.Q8_0, merges=151387)
    for layer in range(m.layers):
        m.norms(layer, "attn_norm", "ffn_norm")
        m.attention(layer, bias=True)
        m.dense(layer)
    return m.file


def qwen3moe(**options: Any) -> Content:
    o = {"d": 768, "layers": 12, "heads": 16, "kv": 2, "ff": 2048, "experts": 32, "expert_ff": 256} | options
    m = Maker("qwen3moe", o["d"], o["layers"], o["ff"], o["heads"], o["kv"], 128)
    m.ends(o.get("vocab", 32768), merges=o.get("merges", 0))
    m.set(expert_count=o["experts"], expert_used_count=8, expert_feed_forward_length=o["expert_ff"])
    m.set(rope__freq_base=1e6, context_length=o.get("context", 40960))
    for layer in range(m.layers):
        m.norms(layer, "attn_norm", "ffn_norm")
        m.attention(layer, qk_norm=True)
        m.experts(layer, o["experts"], o["expert_ff"])
    return m.file


def gemma2(**_: Any) -> Content:
    """Every other layer has a window."""
    m = Maker("gemma2", 768, 12, 3072, 4, 2, 256)
    sentencepiece(m.file, 64000)
    m.matrices(64000, tied=True, embedding=Type.Q6_K)
    m.set(attention__sliding_window=1024, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    for layer in range(m.layers):
        m.norms(layer, "attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")
        m.attention(layer)
        m.dense(layer)
    return m.file


def gemma3(**_: Any) -> Content:
    """Gemma 3 270M: the vocabulary is most of it, five of six layers have a window."""
    m = Maker("gemma3", 640, 18, 2048, 4, 1, 256)
    m.type = Type.Q4_0
    sentencepiece(m.file, 262144)
    m.matrices(262144, tied=True)
    m.set(attention__sliding_window=512, rope__freq_base=1e6)
    for layer in range(m.layers):
        m.norms(layer, "attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")
        m.attention(layer, qk_norm=True)
        m.dense(layer)
    return m.file


def gemma4(**_: Any) -> Content:
    """Heads of two sizes by the kind of layer, the last layers without a cache of their own, inputs for each layer."""
    layers, shared, wide, narrow, own = 12, 4, 256, 128, 64
    windows = [layer % 4 != 3 for layer in range(layers)]
    m = Maker("gemma4", 768, layers, 3072, 8, [2 if window else 1 for window in windows], wide)
    m.ends(64000, tied=True, embedding=Type.Q6_K)
    m.set(attention__sliding_window=512, attention__sliding_window_pattern=windows, rope__freq_base=1e6)
    m.set(attention__key_length_swa=narrow, attention__value_length_swa=narrow, rope__dimension_count_swa=narrow)
    m.set(attention__shared_kv_layers=shared, embedding_length_per_layer_input=own, final_logit_softcapping=30.0)
    m.weight("per_layer_token_embd", own * layers, 64000)
    m.weight("per_layer_model_proj", m.d, own * layers)
    m.add("per_layer_proj_norm.weight", own)
    m.add("rope_freqs.weight", wide // 2)
    for layer in range(layers):
        b = f"blk.{layer}."
        m.norms(layer, "attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm", "post_norm")
        m.head = narrow if windows[layer] else wide
        m.attention(layer, qk_norm=True)
        m.dense(layer)
        m.weight(b + "inp_gate", m.d, own)
        m.add(b + "proj.weight", own, m.d)
    return m.file


def deepseek2(**_: Any) -> Content:
    """MLA in its absorbed form: the cache holds one narrow row a token."""
    m = Maker("deepseek2", 1024, 8, 2816, 16, 1, 0)
    q_rank, rank, rope, key, value, experts, ff = 384, 512, 64, 192, 128, 16, 512
    m.ends(32000)
    m.set(attention__q_lora_rank=q_rank, attention__kv_lora_rank=rank, rope__dimension_count=rope)
    m.set(attention__key_length=rank + rope, attention__value_length=rank)
    m.set(attention__key_length_mla=key, attention__value_length_mla=value, leading_dense_block_count=1)
    m.set(expert_count=experts, expert_used_count=4, expert_feed_forward_length=ff, expert_shared_count=1)
    m.set(expert_gating_func=2, expert_weights_scale=1.0, expert_weights_norm=True)
    for layer in range(m.layers):
        b = f"blk.{layer}."
        m.norms(layer, "attn_norm", "ffn_norm")
        m.norms(layer, "attn_q_a_norm", size=q_rank)
        m.norms(layer, "attn_kv_a_norm", size=rank)
        m.weight(b + "attn_q_a", m.d, q_rank, type=Type.Q8_0)
        m.weight(b + "attn_q_b", q_rank, m.heads * key, type=Type.Q8_0)
        m.weight(b + "attn_kv_a_mqa", m.d, rank + rope)
        m.weight(b + "attn_k_b", key - rope, rank, m.heads, type=Type.Q8_0)
        m.weight(b + "attn_v_b", rank, value, m.heads, type=Type.Q8_0)
        m.weight(b + "attn_output", m.heads * value, m.d)
        if layer == 0:
            m.dense(layer)
        else:
            m.experts(layer, experts, ff)
            m.dense(layer, ff, "_shexp")
    return m.file


def gpt_oss(**_: Any) -> Content:
    """Windows, experts with biases, and a sink for every head."""
    m = Maker("gpt-oss", 768, 12, 512, 16, 4, 64)
    experts, ff = 16, 768
    m.type = Type.Q8_0
    m.ends(100000)
    m.set(expert_count=experts, expert_used_count=4, expert_feed_forward_length=ff, attention__sliding_window=128)
    for layer in range(m.layers):
        b = f"blk.{layer}."
        m.norms(layer, "attn_norm", "post_attention_norm")
        m.attention(layer, bias=True)
        m.add(b + "attn_output.bias", m.d)
        m.add(b + "attn_sinks.weight", m.heads)
        m.experts(layer, experts, ff, Type.MXFP4)
        for name, size in (("gate_inp", 0), ("gate_exps", ff), ("up_exps", ff), ("down_exps", m.d)):
            m.add(f"{b}ffn_{name}.bias", *([size, experts] if size else [experts]))
    return m.file


def llama4(**_: Any) -> Content:
    """Attention in chunks of 8192, but for every fourth layer; experts in every other one."""
    m = Maker("llama4", 1024, 8, 2048, 16, 4, 64)
    experts, ff = 16, 512
    m.ends(50000)
    m.set(expert_count=experts, expert_used_count=1, expert_feed_forward_length=ff, interleave_moe_layer_step=2)
    for layer in range(m.layers):
        m.norms(layer, "attn_norm", "ffn_norm")
        m.attention(layer)
        if layer % 2:
            m.experts(layer, experts, ff)
            m.dense(layer, ff, "_shexp")
        else:
            m.dense(layer)
    return m.file


def bert(*, classifier: bool = False, **_: Any) -> Content:
    """An embedding model, or one that judges a document for a question."""
    m = Maker("bert", 384, 12, 1536, 12, 12, 0)
    context = 8192
    m.type = Type.F16
    wordpiece(m.file, 30522)
    m.set(context_length=context, attention__layer_norm_epsilon=1e-12, attention__causal=False)
    m.set(pooling_type=4 if classifier else 1)
    m.weight("token_embd", m.d, 30522)
    m.add("token_types.weight", m.d, 2)
    m.add("position_embd.weight", m.d, context)
    biased(m, "token_embd_norm", m.d)
    for layer in range(m.layers):
        b = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            m.weight(b + name, m.d, m.d)
            m.add(f"{b}{name}.bias", m.d)
        m.weight(b + "ffn_up", m.d, m.ff)
        m.add(b + "ffn_up.bias", m.ff)
        m.weight(b + "ffn_down", m.ff, m.d)
        m.add(b + "ffn_down.bias", m.d)
        biased(m, b + "attn_output_norm", m.d)
        biased(m, b + "layer_output_norm", m.d)
    if classifier:
        biased(m, "cls", m.d, m.d)
        m.add("cls.output.weight", m.d, 1)
        m.add("cls.output.bias", 1)
    return m.file


def biased(m: Maker, name: str, *shape: int) -> None:
    m.add(f"{name}.weight", *shape)
    m.add(f"{name}.bias", shape[-1])


def nomic_bert(**_: Any) -> Content:
    """An embedding model with rotary positions and q, k, v in one matrix."""
    m = Maker("nomic-bert", 768, 12, 3072, 12, 12, 0)
    m.type = Type.Q8_0
    wordpiece(m.file, 30528)
    m.set(context_length=8192, attention__layer_norm_epsilon=1e-12, attention__causal=False, pooling_type=1)
    m.set(rope__freq_base=1000.0)
    m.weight("token_embd", m.d, 30528)
    m.add("token_types.weight", m.d, 2)
    biased(m, "token_embd_norm", m.d)
    for layer in range(m.layers):
        b = f"blk.{layer}."
        m.weight(b + "attn_qkv", m.d, 3 * m.d)
        m.weight(b + "attn_output", m.d, m.d)
        m.dense(layer)
        biased(m, b + "attn_output_norm", m.d)
        biased(m, b + "layer_output_norm", m.d)
    return m.file


Shape = Callable[..., Content]
