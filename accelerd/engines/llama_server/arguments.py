"""What extra_args say of memory: the settings that they overrule, and options whose effect nobody can forecast.

They come last on the command line, so the program follows them. What is no value where one belongs is left to the
program to refuse. Pure.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from msgspec import Struct

from accelerd.base.decoding import whole_number
from accelerd.config.flags import flag_name, settings_of
from accelerd.config.lora import LoraAdapter
from accelerd.config.model import ModelSpec
from accelerd.config.values import tensor_override

# Options without a setting of their own, and the field of EstimateSettings that they decide.
NUMBERS: Final = dict.fromkeys(("--ctx-checkpoints", "-ctxcp", "--swa-checkpoints"), "checkpoints")
SWITCHES: Final[Mapping[str, tuple[str, Any]]] = {
    "--swa-full": ("window_full", True),
    "--no-kv-offload": ("offload_cache", False),
    "-nkvo": ("offload_cache", False),
    "--kv-unified": ("unified", True),
    "-kvu": ("unified", True),
    "--no-repack": ("repacked", frozenset()),
    "-nr": ("repacked", frozenset()),
}
# Options that change what is needed, or where, by amounts that are known only when the program runs.
UNKNOWN: Final = frozenset({
    "--device", "-dev", "--main-gpu", "-mg", "--mmproj-device", "-mmdev", "--mmproj-url", "-mmu", "--rpc",
    "--override-kv", "--control-vector", "--control-vector-scaled", "--lazy-mode", "-lzm", "--kv-unified-per-slot",
    "--spec-draft-hf", "-hfd", "-hfrd", "--hf-repo-draft", "--spec-draft-device", "-devd", "--device-draft",
    "--spec-draft-override-tensor", "-otd", "--override-tensor-draft", "--spec-draft-cpu-moe", "-cmoed",
    "--cpu-moe-draft", "--spec-draft-n-cpu-moe", "--spec-draft-ncmoe", "-ncmoed", "--n-cpu-moe-draft",
    "--lookup-cache-static", "-lcs", "--lookup-cache-dynamic", "-lcd", "--image-max-tokens", "--mtmd-batch-max-tokens",
})  # fmt: skip
UNMAPPED: Final = frozenset({"none", "dio"})  # modes of --load-mode


class ReadArguments(Struct, frozen=True):
    """A model's settings as the program will follow them."""

    spec: ModelSpec
    estimate: Mapping[str, Any]  # fields of EstimateSettings
    unknown: tuple[str, ...]  # options whose effect on memory is not known


def read(spec: ModelSpec) -> ReadArguments:
    decided: dict[str, Any] = {}
    for_estimate: dict[str, Any] = {}
    unknown: list[str] = []
    for flag, words in _options(spec.extra_args):
        value = words[0] if words else ""
        if flag in SWITCHES:
            name, setting = SWITCHES[flag]
            for_estimate[name] = setting
        elif flag in NUMBERS and (number := whole_number(value)) is not None:
            for_estimate[NUMBERS[flag]] = number
        elif flag in UNKNOWN:
            unknown.append(flag)
        else:
            for field in settings_of(flag):
                try:
                    decided |= _decided(field, flag, words, replace(spec, **decided))
                except (ValueError, IndexError):
                    unknown.append(flag)
    return ReadArguments(replace(spec, **decided) if decided else spec, for_estimate, tuple(dict.fromkeys(unknown)))


def last(arguments: Sequence[str], names: Collection[str]) -> str | None:
    """The last value that they give an option; None: it is not there."""
    found = None
    for flag, words in _options(arguments):
        if flag in names:
            found = words[0] if words else ""
    return found


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each option with the words behind it."""
    for index, argument in enumerate(arguments):
        if not argument.startswith("-"):
            continue
        flag, value = flag_name(argument), argument.partition("=")[2]
        yield flag, ([value] if value else []) + list(arguments[index + 1 : index + 3])


def _decided(field: str, flag: str, words: Sequence[str], spec: ModelSpec) -> dict[str, Any]:
    """The field with its new value; none where it has nothing to do with memory. ValueError, IndexError."""
    if field in SWITCHED:
        return {field: not flag.startswith("--no-")}
    if field == "flash_attention":
        return {field: words[0] if words and words[0] in ("on", "off", "auto") else "on"}
    if field == "mmap":
        return {field: _mapped(flag, words)}
    if field == "lora":
        return {} if flag == "--lora-init-without-apply" else {field: (*spec.lora, *_adapters(flag, words))}
    convert = CONVERT.get(field)
    if convert is None:
        return {}
    value = convert(words[0])
    return {field: (*spec.override_tensor, *value)} if field == "override_tensor" else {field: value}


def _mapped(flag: str, words: Sequence[str]) -> bool | None:
    if flag in ("--load-mode", "-lm"):
        return None if words[0] == "auto" else words[0] not in UNMAPPED
    return flag in ("--mmap", "--mlock")


def _adapters(flag: str, words: Sequence[str]) -> Iterator[LoraAdapter]:
    for value in next(csv.reader([words[0]])):
        path, colon, scale = value.rpartition(":")
        if flag == "--lora":
            yield LoraAdapter(value)
        elif colon:
            yield LoraAdapter(path, float(scale))
        else:  # earlier programs: a word of its own
            yield LoraAdapter(value, float(words[1]))


def _layers(value: str) -> int | str:
    if value in ("all", "auto"):
        return value
    return {-1: "auto", -2: "all"}.get(int(value), int(value))


def _overrides(value: str) -> tuple[str, ...]:
    for part in value.split(","):
        tensor_override(part)
    return tuple(value.split(","))


def _on(value: str) -> bool:
    return value in ("on", "true", "1", "enabled")


def _file(value: str) -> str:
    if not value:
        raise ValueError("no file")
    return value


def _positive(value: str) -> int:
    if (number := int(value)) < 0:
        raise ValueError(value)
    return number


SWITCHED: Final = ("cpu_moe", "embeddings", "rerank", "mmproj_offload")
CONVERT: Final[Mapping[str, Callable[[str], Any]]] = {
    **dict.fromkeys(("batch", "ubatch", "n_cpu_moe", "n_cpu_ffn", "draft_max", "fit_ctx"), _positive),
    **dict.fromkeys(("gpu_layers", "draft_gpu_layers"), _layers),
    **dict.fromkeys(("cache_type_k", "cache_type_v", "draft_cache_type_k", "draft_cache_type_v", "split_mode"), str),
    **dict.fromkeys(("mmproj", "draft_model"), _file),
    "override_tensor": _overrides,
    "tensor_split": lambda value: tuple(map(float, re.split("[,/]+", value))),
    "spec_type": lambda value: tuple(value.split(",")),
    "fit": _on,
    "fit_target": lambda value: tuple(int(size) << 20 for size in re.split("[,/]+", value)),
}
