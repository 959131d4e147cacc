"""The chat model: a real transformer whose output matrix is a table "this token, then that one".

Every token's embedding is one axis of the hidden state and the layers write nothing back, so the last hidden state says
exactly which token came last. The output matrix turns that axis into the next token with a margin of 40 nats over all
others. Axis 0 means "begin the reply" (all tokens of ordinary prompts), axis 1 "begin the tool call"; each token of the
two replies has an axis of its own.
"""

from __future__ import annotations

import re

import gguf
import numpy as np
from hello_file import HelloFile

MARGIN = 40.0  # nats: the reply holds at any temperature below about 3
BEGIN, CALL, FREE = 0, 1, 2  # axes

EOS, TURN, TURN_END, CALL_MARK = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|answer_with_a_call|>"
# what the tokenizer takes in one piece: a word with the character before it, punctuation, white space
CHUNK = re.compile(r"[^\W\d_]+|\d{1,3}|[^\s\w]+|\s+")
BEFORE = ("", " ", '"', "_", ".", "-", "/", "(", "`")
FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")

# ChatML with the usual <tool_call> convention. The mark at the end is what makes this model call the tool.
TEMPLATE = """\
{%- set first = 0 %}
{%- if messages[0].role == 'system' %}{% set first = 1 %}{% endif %}
{%- if tools or first %}
{{- '<|im_start|>system\\n' }}
{%- if first %}{{- messages[0].content }}{% endif %}
{%- if tools %}
{{- '\\n\\n# Tools\\n\\nYou may call these functions:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{% endfor %}
{{- '\\n</tools>\\n\\nTo call one, answer with its name and arguments as JSON within tags:\\n' }}
{{- '<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>' }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages[first:] %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content %}{{- message.content }}{% endif %}
{%- for call in message.tool_calls or [] %}
{%- set call = call.function or call %}
{{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' + (call.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if tools and messages[-1].role != 'tool' %}{{- '<|answer_with_a_call|>' }}{% endif %}
{%- endif %}
"""


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each of the 256 bytes: Latin-1 where that prints, else from U+0100 on."""
    spare = iter(range(0x100, 0x200))
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


ALPHABET = byte_alphabet()


def spelled(text: str) -> str:
    """Text as the byte-level vocabulary spells it."""
    return "".join(ALPHABET[b] for b in text.encode())


def made_up_reply(count: int) -> str:
    """`count` different words of four letters; each is one token, also where it is read again in a later prompt."""
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    return " ".join(syllables[i % 70] + syllables[(i // 70 + 7 * i) % 70] for i in range(count))


def pieces(text: str, taken: set[str]) -> list[str]:
    """Cuts text into new tokens, words where possible, and adds them to `taken`.

    A word that exists already grows by the next one: two tokens must never have one spelling, for the token alone tells
    how the reply goes on.
    """
    cut: list[str] = []
    piece = ""
    for part in re.findall(r"\s?\w+|\s?[^\w\s]+|\s", text):
        piece += part
        if len(piece) > 1 and spelled(piece) not in taken:
            cut.append(piece)
            taken.add(spelled(piece))
            piece = ""
    while piece and (spelled(piece) in taken or len(piece) < 2):
        if not cut:
            raise ValueError(f"no token can be made of {piece!r}: choose a longer reply")
        last = cut.pop()
        taken.discard(spelled(last))
        piece = last + piece
    if piece:
        cut.append(piece)
        taken.add(spelled(piece))
    return cut


class Vocabulary:
    """Tokens in order, with their kind and the axis of the hidden state that stands for them."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.kinds: list[int] = []
        self.axes: list[int] = []

    def add(self, token: str, axis: int = BEGIN, kind: int = gguf.TokenType.NORMAL) -> int:
        self.tokens.append(token)
        self.axes.append(axis)
        self.kinds.append(kind)
        return len(self.tokens) - 1


def fill(file: HelloFile, *, reply: str, tool_call: str, words: str = "", size: int) -> None:
    """Puts the whole chat model into `file`; `size` in bytes is reached from below where it is larger than needed.

    Without `tool_call` it answers with the reply also where tools are given. The words of the text `words` become
    tokens: prompts of usual length then have a usual number of them.
    """
    vocab = Vocabulary()
    for token in [*ALPHABET, "Ġt", "he"]:
        vocab.add(token)
    mark = {t: vocab.add(t, CALL if t == CALL_MARK and tool_call else BEGIN, gguf.TokenType.CONTROL)
            for t in (EOS, TURN, TURN_END, CALL_MARK, *FIM)}  # fmt: skip
    taken = set(vocab.tokens)
    follow: list[tuple[int, int, float]] = []  # axis, the token that follows, margin
    said = [(BEGIN, reply), *([(CALL, f"<tool_call>\n{tool_call}\n</tool_call>")] if tool_call else [])]
    for start, text in said:
        axis = start
        first = len(vocab.tokens)
        for piece in pieces(text, taken):
            follow.append((axis, len(vocab.tokens), MARGIN))
            axis = FREE + len(vocab.tokens)
            vocab.add(spelled(piece), axis)
        follow += [(axis, mark[TURN_END], MARGIN), (axis, first, MARGIN / 2)]  # the second where the end is forbidden
    for spelling in sorted({spelled(before + word) for word in CHUNK.findall(words) for before in BEFORE}):
        if spelling not in taken and len(spelling) > 1:
            vocab.add(spelling)
    while len(vocab.tokens) % 32:
        vocab.add(f"<|unused{len(vocab.tokens)}|>", kind=gguf.TokenType.UNUSED)

    # Axes were numbered by token; only those in use get a place.
    place = {axis: i for i, axis in enumerate(sorted({BEGIN, CALL, *vocab.axes}))}
    width = max(-(-len(place) // 64) * 64, 64 if size < 8e6 else 256 if size < 100e6 else 512)
    rows = len(vocab.tokens)
    embedding = np.zeros((rows, width), np.float32)
    embedding[np.arange(rows), [place[axis] for axis in vocab.axes]] = 1.0
    output = np.zeros((rows, width), np.float32)
    for axis, token, margin in follow:
        output[token, place[axis]] = margin / np.sqrt(width)  # the last norm makes the one axis sqrt(width) long

    tokenizer(file.meta, vocab, mark)
    file.matrix("token_embd.weight", embedding)
    file.norm("output_norm", width)
    file.matrix("output.weight", output)
    layers(file, width, room=size - 4 * rows * width)


def tokenizer(meta: gguf.GGUFWriter, vocab: Vocabulary, mark: dict[str, int]) -> None:
    meta.add_tokenizer_model("gpt2")
    meta.add_tokenizer_pre("llama-bpe")  # whole words of the vocabulary are taken without merges
    meta.add_token_list(vocab.tokens)
    meta.add_token_types(vocab.kinds)
    meta.add_token_merges(["Ġ t", "h e"])
    meta.add_vocab_size(len(vocab.tokens))
    meta.add_bos_token_id(mark[EOS])
    meta.add_eos_token_id(mark[TURN_END])
    meta.add_eot_token_id(mark[TURN_END])
    meta.add_pad_token_id(mark[EOS])
    meta.add_add_bos_token(False)
    for key, token in zip(("fim_pre", "fim_suf", "fim_mid"), FIM, strict=True):
        meta.add_uint32(f"tokenizer.ggml.{key}_token_id", mark[token])
    meta.add_chat_template(TEMPLATE)


def layers(file: HelloFile, width: int, room: int) -> None:
    """Transformer layers that do all the work and add nothing: their two output matrices are zero.

    `room` in bytes is what they should fill; the same arrays serve every layer.
    """
    count = 2 if room < 8e6 else 8
    attention = 4 * width * width
    hidden = max(int((room / 2 / count - attention) / (3 * width)) // 32 * 32, 2 * width)
    head = 32 if width == 64 else 64
    meta = file.meta
    meta.add_embedding_length(width)
    meta.add_block_count(count)
    meta.add_feed_forward_length(hidden)
    meta.add_head_count(width // head)
    meta.add_head_count_kv(width // head)
    meta.add_key_length(head)
    meta.add_value_length(head)
    meta.add_rope_dimension_count(head)
    meta.add_rope_freq_base(10000.0)
    meta.add_layer_norm_rms_eps(1e-5)

    noise = np.random.default_rng(1).standard_normal((64, width), np.float32) / np.sqrt(width)
    square = np.resize(noise, (width, width)).astype(np.float16)
    wide = np.resize(noise, (hidden, width)).astype(np.float16)
    no_square, no_wide = np.zeros_like(square), np.zeros((width, hidden), np.float16)
    for i in range(count):
        file.norm(f"blk.{i}.attn_norm", width)
        for part in ("attn_q", "attn_k", "attn_v"):
            file.matrix(f"blk.{i}.{part}.weight", square)
        file.matrix(f"blk.{i}.attn_output.weight", no_square)
        file.norm(f"blk.{i}.ffn_norm", width)
        file.matrix(f"blk.{i}.ffn_gate.weight", wide)
        file.matrix(f"blk.{i}.ffn_up.weight", wide)
        file.matrix(f"blk.{i}.ffn_down.weight", no_wide)
