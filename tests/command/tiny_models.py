"""A Stable Diffusion 1.5 model whose weights are zero: the right names and shapes, in a sparse file without content."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def affine(name: str, *shape: int) -> Shapes:
    """Weight and bias of a layer whose first dimension is what comes out."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def residual(name: str, before: int, after: int, embedded: int) -> Shapes:
    yield from affine(f"{name}.in_layers.0", before)
    yield from affine(f"{name}.in_layers.2", after, before, 3, 3)
    yield from affine(f"{name}.emb_layers.1", after, embedded)
    yield from affine(f"{name}.out_layers.0", after)
    yield from affine(f"{name}.out_layers.3", after, after, 3, 3)
    if before != after:
        yield from affine(f"{name}.skip_connection", after, before, 1, 1)


def attention(name: str, size: int, context: int) -> Shapes:
    yield from affine(f"{name}.norm", size)
    yield from affine(f"{name}.proj_in", size, size, 1, 1)
    yield from affine(f"{name}.proj_out", size, size, 1, 1)
    block = f"{name}.transformer_blocks.0"
    for number, seen in ((1, size), (2, context)):
        yield f"{block}.attn{number}.to_q.weight", (size, size)
        yield f"{block}.attn{number}.to_k.weight", (size, seen)
        yield f"{block}.attn{number}.to_v.weight", (size, seen)
        yield from affine(f"{block}.attn{number}.to_out.0", size, size)
    yield from affine(f"{block}.ff.net.0.proj", 8 * size, size)
    yield from affine(f"{block}.ff.net.2", size, 4 * size)
    for number in (1, 2, 3):
        yield from affine(f"{block}.norm{number}", size)


def unet(name: str, base: int = 320, context: int = 768, levels: tuple[int, ...] = (1, 2, 4, 4)) -> Shapes:
    embedded = 4 * base
    yield from affine(f"{name}.time_embed.0", embedded, base)
    yield from affine(f"{name}.time_embed.2", embedded, embedded)
    yield from affine(f"{name}.input_blocks.0.0", base, 4, 3, 3)
    sizes, now, block = [base], base, 1
    for level, factor in enumerate(levels):
        for _ in range(2):
            yield from residual(f"{name}.input_blocks.{block}.0", now, base * factor, embedded)
            now = base * factor
            if level < 3:
                yield from attention(f"{name}.input_blocks.{block}.1", now, context)
            sizes.append(now)
            block += 1
        if level < 3:
            yield from affine(f"{name}.input_blocks.{block}.0.op", now, now, 3, 3)
            sizes.append(now)
            block += 1
    for part in (0, 2):
        yield from residual(f"{name}.middle_block.{part}", now, now, embedded)
    yield from attention(f"{name}.middle_block.1", now, context)
    block = 0
    for level, factor in reversed(list(enumerate(levels))):
        for place in range(3):
            yield from residual(f"{name}.output_blocks.{block}.0", now + sizes.pop(), base * factor, embedded)
            now = base * factor
            if level < 3:
                yield from attention(f"{name}.output_blocks.{block}.1", now, context)
            if level and place == 2:
                yield from affine(f"{name}.output_blocks.{block}.{2 if level < 3 else 1}.conv", now, now, 3, 3)
            block += 1
    yield from affine(f"{name}.out.0", now)
    yield from affine(f"{name}.out.2", 4, now, 3, 3)


def vae_block(name: str, before: int, after: int) -> Shapes:
    yield from affine(f"{name}.norm1", before)
    yield from affine(f"{name}.conv1", after, before, 3, 3)
    yield from affine(f"{name}.norm2", after)
    yield from affine(f"{name}.conv2", after, after, 3, 3)
    if before != after:
        yield from affine(f"{name}.nin_shortcut", after, before, 1, 1)


def vae_middle(name: str, size: int) -> Shapes:
    yield from vae_block(f"{name}.block_1", size, size)
    for part in ("q", "k", "v", "proj_out"):
        yield from affine(f"{name}.attn_1.{part}", size, size, 1, 1)
    yield from affine(f"{name}.attn_1.norm", size)
    yield from vae_block(f"{name}.block_2", size, size)


def vae(name: str, base: int = 128, levels: tuple[int, ...] = (1, 2, 4, 4)) -> Shapes:
    now = base
    yield from affine(f"{name}.encoder.conv_in", base, 3, 3, 3)
    for level, factor in enumerate(levels):
        for number in range(2):
            yield from vae_block(f"{name}.encoder.down.{level}.block.{number}", now, base * factor)
            now = base * factor
        if level < 3:
            yield from affine(f"{name}.encoder.down.{level}.downsample.conv", now, now, 3, 3)
    yield from vae_middle(f"{name}.encoder.mid", now)
    yield from affine(f"{name}.encoder.norm_out", now)
    yield from affine(f"{name}.encoder.conv_out", 8, now, 3, 3)
    yield from affine(f"{name}.decoder.conv_in", now, 4, 3, 3)
    yield from vae_middle(f"{name}.decoder.mid", now)
    for level, factor in reversed(list(enumerate(levels))):
        for number in range(3):
            yield from vae_block(f"{name}.decoder.up.{level}.block.{number}", now, base * factor)
            now = base * factor
        if level:
            yield from affine(f"{name}.decoder.up.{level}.upsample.conv", now, now, 3, 3)
    yield from affine(f"{name}.decoder.norm_out", now)
    yield from affine(f"{name}.decoder.conv_out", 3, now, 3, 3)
    yield from affine(f"{name}.quant_conv", 8, 8, 1, 1)
    yield from affine(f"{name}.post_quant_conv", 4, 4, 1, 1)


def clip(name: str, size: int = 768, layers: int = 12) -> Shapes:
    yield f"{name}.embeddings.token_embedding.weight", (49408, size)
    yield f"{name}.embeddings.position_embedding.weight", (77, size)
    for number in range(layers):
        layer = f"{name}.encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from affine(f"{layer}.self_attn.{part}", size, size)
        yield from affine(f"{layer}.mlp.fc1", 4 * size, size)
        yield from affine(f"{layer}.mlp.fc2", size, 4 * size)
        for part in ("layer_norm1", "layer_norm2"):
            yield from affine(f"{layer}.{part}", size)
    yield from affine(f"{name}.final_layer_norm", size)


def stable_diffusion(path: Path) -> Path:
    """The file, in the format of safetensors: 2 GB of zeros, of which nothing is on the disk."""
    header, at = {}, 0
    for shapes in (
        unet("model.diffusion_model"),
        vae("first_stage_model"),
        clip("cond_stage_model.transformer.text_model"),
    ):
        for name, shape in shapes:
            size = 2 * math.prod(shape)
            header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
            at += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + at)
    return path
