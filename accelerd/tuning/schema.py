"""The schema of rules.toml and of a user's tuning.toml: what a rule may ask for, what it may set.

The structs describe and are never instantiated. Keys of `set` have the names and values of accelerd.toml's.
"""

import re
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from accelerd.config import units
from accelerd.config.keys import about
from accelerd.config.model import KvCacheTable
from accelerd.config.values import CacheType, EnvName, Layers, Name, OnOffAuto, TextLine

_WORDS: Final = 'a word, "*" and "?" stand for any characters'
_PATTERN: Final = re.compile(r"[A-Za-z0-9_.*?-]{1,64}\Z")
_OPTION: Final = 'an option\'s name, such as "--cache-reuse"'
_SIZE: Final = units.SIZE


def _pattern(value: str) -> str:
    if not _PATTERN.match(value):
        raise ValueError(_WORDS)
    return value.lower()


def _option(value: str) -> str:
    if not re.fullmatch(r"--?[A-Za-z][\w-]*", value):
        raise ValueError(_OPTION)
    return value


def _type(expects: str, parse: Any) -> Meta:
    return Meta(extra={"expects": expects, "parse": parse})


Pattern = Annotated[str, _type(_WORDS, _pattern)]
Option = Annotated[str, _type(_OPTION, _option)]
Size = Annotated[int | str, _type(_SIZE, units.parse_size)]
EnvValue = Annotated[str, Meta(max_length=4096)]  # shown to people, unlike those of accelerd.toml
Backend = Literal["radv", "amdvlk", "vulkan", "rocm", "cuda", "sycl", "metal", "cpu"]
PHYSICAL: Final = "physical"
Threads = Annotated[int, Meta(ge=1, le=4096)] | Literal["physical"]


class WhenTable(Struct):
    """All of these must hold; what is not known does not hold."""

    device: Annotated[Literal["gpu", "cpu"], about("What computes.")]
    vendor: Annotated[Literal["amd", "nvidia", "intel"], about("Who made the device.")]
    gfx: Annotated[Pattern | list[Pattern], about('AMD\'s target, "gfx1151".')]
    driver: Annotated[Pattern | list[Pattern], about("The kernel's driver.")]
    apu: Annotated[bool, about("The GPU is part of the processor.")]
    unified: Annotated[bool, about("The device's memory is the machine's.")]
    engine: Annotated[Pattern | list[Pattern], about("The engine.")]
    backend: Annotated[Backend | list[Backend], about("What the engine's build computes with.")]
    image: Annotated[Pattern | list[Pattern], about("The image of the container that the engine runs in.")]
    option: Annotated[Option | list[Option], about("The build has all of these options.")]
    architecture: Annotated[Pattern | list[Pattern], about("general.architecture of the GGUF file.")]
    moe: Annotated[bool, about("The model is a mixture of experts.")]
    task: Annotated[Literal["generate", "embeddings", "rerank"], about("What the model does.")]
    min_size: Annotated[Size, about("The model's files together have at least this size.")]
    max_size: Annotated[Size, about("They have at most this size.")]


class SetTable(Struct):
    """Settings, as in accelerd.toml."""

    mmap: Annotated[bool, about("Map the model file instead of reading it into memory.")]
    flash_attention: Annotated[OnOffAuto, about("Flash attention.")]
    batch: Annotated[int, about("Tokens of a prompt taken together.", ge=1, le=1 << 20)]
    ubatch: Annotated[int, about("Tokens computed at once; at most batch.", ge=1, le=1 << 20)]
    kv_cache_type: Annotated[CacheType | KvCacheTable, about("Type of the KV cache.")]
    gpu_layers: Annotated[Layers, about("Layers that run on the GPU.")]
    threads: Annotated[Threads, about('CPU threads; "physical" is one for each core.')]
    env: Annotated[dict[EnvName, EnvValue], about("Environment variables.")]


class RuleTable(Struct):
    """One rule."""

    when: Annotated[WhenTable, about("What must hold.")]
    set: Annotated[SetTable, about("What is set where nobody has set it.")]
    source: Annotated[TextLine, about("Who found out: an address or a document.")]
    reason: Annotated[TextLine, about("Why, in one clause.")]
    enabled: Annotated[bool, about("false switches the rule off.")]


class RulesDocument(Struct):
    """A file of rules."""

    rules: Annotated[dict[Name, RuleTable], about("The rules, by name. Later ones win.")]
