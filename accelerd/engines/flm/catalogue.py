"""FastFlowLM's models and their names: size, abilities and cache size, without running the program.

From its list of models (0.9.45) and, for the cache, the models' published configurations. The installed program's own
list takes precedence. Pure.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec import Struct

GB: Final = 10**9
MOST_GB: Final = 1 << 20  # of a footprint
UNNAMED: Final = 4.0  # billions of parameters, where the name tells no number
CACHE_UNKNOWN: Final = 128 * 1024  # bytes a token: more than most
WHISPER: Final = "whisper-v3:turbo"
EMBEDDER: Final = "embed-gemma:300m"
SUFFIX: Final = "-flm"  # of Lemonade's names


class FlmModel(Struct, frozen=True):
    """One model."""

    tag: str
    footprint: int  # bytes of its weights
    context: int  # default, in tokens
    labels: tuple[str, ...] = ()
    cache: int = CACHE_UNKNOWN  # bytes a token
    installed: bool | None = None  # None: unknown
    guessed: bool = False  # … is the footprint?

    @property
    def kind(self) -> str:
        """The kind of NPU context: "asr", "embed", "llm"."""
        if "transcription" in self.labels:
            return "asr"
        return "embed" if "embeddings" in self.labels else "llm"


# tag, GB, tokens, labels, KiB of cache a token: layers with a whole cache x heads of keys x their width x 4 bytes
_ROWS: Final = (
    ("deepseek-r1:8b", 5.4, 16384, "reasoning", 128),
    ("deepseek-r1-0528:8b", 5.6, 16384, "reasoning", 144),
    ("embed-gemma:300m", 0.62, 2048, "embeddings", 0),
    ("gemma3:1b", 1.2, 32768, "", 4),
    ("gemma3:4b", 4.5, 65536, "vision", 24),
    ("gemma4-it:e2b", 6.0, 32768, "audio vision reasoning tool-calling chat-transcription", 16),
    ("gemma4-it:e4b", 9.1, 32768, "audio vision reasoning tool-calling chat-transcription", 32),
    ("gpt-oss:20b", 14.0, 8192, "reasoning", 48),
    ("gpt-oss-sg:20b", 14.0, 8192, "reasoning", 48),
    ("lfm2:1.2b", 0.96, 32768, "", 12),
    ("lfm2:2.6b", 1.8, 32768, "", 16),
    ("lfm2-trans:2.6b", 1.8, 32768, "", 16),
    ("lfm2.5-it:1.2b", 0.96, 32768, "", 12),
    ("lfm2.5-tk:1.2b", 0.96, 32768, "reasoning", 12),
    ("llama3.1:8b", 5.4, 16384, "", 128),
    ("llama3.2:1b", 1.3, 131072, "", 32),
    ("llama3.2:3b", 2.7, 65536, "", 112),
    ("medgemma:4b", 4.5, 65536, "vision", 24),
    ("medgemma1.5:4b", 4.5, 65536, "vision", 24),
    ("nanbeige4.1:3b", 3.1, 8192, "reasoning", 64),
    ("phi4-mini-it:4b", 3.4, 32768, "", 128),
    ("qwen2.5-it:3b", 2.5, 32768, "", 36),
    ("qwen2.5vl-it:3b", 3.8, 32768, "vision", 36),
    ("qwen3:0.6b", 0.66, 32768, "reasoning", 112),
    ("qwen3:1.7b", 1.6, 32768, "reasoning", 112),
    ("qwen3:4b", 3.1, 32768, "reasoning tool-calling", 144),
    ("qwen3:8b", 5.6, 16384, "reasoning tool-calling", 144),
    ("qwen3-it:4b", 3.1, 32768, "tool-calling", 144),
    ("qwen3-tk:4b", 3.1, 32768, "reasoning tool-calling", 144),
    ("qwen3.5:0.8b", 1.4, 32768, "vision reasoning", 12),
    ("qwen3.5:2b", 3.2, 32768, "vision reasoning tool-calling", 12),
    ("qwen3.5:4b", 5.2, 32768, "vision reasoning tool-calling", 32),
    ("qwen3.5:9b", 8.94, 32768, "vision reasoning tool-calling", 32),
    ("qwen3.6-moe:35b-a3b", 24.3, 32768, "vision reasoning tool-calling", 20),
    ("qwen3vl-it:4b", 3.9, 32768, "vision tool-calling", 144),
    ("translategemma:4b", 4.5, 65536, "vision", 24),
    ("whisper-v3:turbo", 0.62, 448, "audio realtime-transcription transcription", 0),
)
KNOWN: Final[Mapping[str, FlmModel]] = {
    tag: FlmModel(tag, int(size * GB), context, tuple(labels.split()), cache * 1024)
    for tag, size, context, labels, cache in _ROWS
}


def of_listing(entry: Mapping[str, Any]) -> FlmModel | None:
    """One model of `flm list --json`; None if invalid. Missing values come from the table."""
    tag = entry.get("name")
    if not isinstance(tag, str) or not tag:
        return None
    table = KNOWN.get(tag)
    footprint, context, labels = entry.get("footprint"), entry.get("default_context_length"), entry.get("label")
    told = footprint if isinstance(footprint, int | float) and 0 < footprint < MOST_GB else 0
    return FlmModel(
        tag,
        int(told * GB) if told else table.footprint if table else guessed_size(tag),
        context if isinstance(context, int) else table.context if table else 0,
        tuple(map(str, labels)) if isinstance(labels, list) else (),
        table.cache if table else CACHE_UNKNOWN,
        entry.get("installed") is True,
        guessed=not told and table is None,
    )


def of_name(tag: str) -> FlmModel:
    """A model that is in no list."""
    return FlmModel(tag, guessed_size(tag), 0, guessed=True)


def why_absent(name: str, listed: Iterable[str]) -> str | None:
    """Why the program's list has not what this names; None: it has. It lists what the NPU of this machine can run."""
    if find_tag(name, listed) is not None:
        return None
    elsewhere = find_tag(name, KNOWN)
    return f"FastFlowLM has {elsewhere}, but not for this NPU" if elsewhere else f"FastFlowLM has no model {name}"


SIZE_IN_NAME: Final = re.compile(r"(?<![a-z0-9.])[ae]?(\d{1,9}(?:\.\d{1,9})?)(b|m)(?![a-z0-9])", re.IGNORECASE)


def guessed_size(name: str) -> int:
    """Bytes of a model of which only the name is known: four to six bits for each of its parameters, and something on
    top. Of several numbers the largest: "35b-a3b" has 35 billion."""
    found = [float(number) * (1 if unit in "bB" else 0.001) for number, unit in SIZE_IN_NAME.findall(name)]
    return int((0.75 * max(found, default=UNNAMED) + 0.5) * GB)


# --- names: the tag is "qwen3:4b", Lemonade writes "qwen3-4b-FLM", people "qwen3-4b", in any case ---


def plain_name(name: str) -> str:
    """The common spelling: `qwen3-4b`."""
    return name.strip().lower().removesuffix(SUFFIX).replace(":", "-")


def find_tag(name: str, known: Iterable[str]) -> str | None:
    """The matching tag; a family alone, if it has one member. None if there is no match, or more than one."""
    tags = list(known)
    wanted = plain_name(name)
    for tag in tags:
        if plain_name(tag) == wanted:
            return tag
    family = [tag for tag in tags if tag.partition(":")[0].lower() == wanted]
    return family[0] if len(family) == 1 else None


def tag_of(name: str, known: Iterable[str] = ()) -> str:
    """The tag, also of an unknown model: the text after the last dash is the size."""
    found = find_tag(name, known)
    if found is not None:
        return found
    if ":" in name:
        return name.strip().lower().removesuffix(SUFFIX)
    family, dash, size = plain_name(name).rpartition("-")
    return f"{family}:{size}" if dash else size


def model_name(tag: str) -> str:
    """accelerd's name for it: `npu/qwen3-4b`."""
    return f"npu/{plain_name(tag)}"


def similar_tags(name: str, known: Iterable[str], most: int = 4) -> list[str]:
    """Similar tags: of the same family, else with a similar name."""
    tags = list(known)
    wanted = plain_name(name)
    family = [tag for tag in tags if tag.partition(":")[0].lower() in (wanted, wanted.rpartition("-")[0])]
    by_plain = {plain_name(tag): tag for tag in tags}
    like = [by_plain[one] for one in difflib.get_close_matches(wanted, by_plain, n=most, cutoff=0.5)]
    return list(dict.fromkeys([*like, *family]))[:most]
