"""What is known of FastFlowLM's models without asking it: how large they are, what they can, what their cache takes.

Data of its list of models (0.9.45), and of the models' own published configurations for the cache, which its list does
not tell. What the installed program says wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

GB: Final = 10**9
CACHE_UNKNOWN: Final = 128 * 1024  # bytes a token: more than most
WHISPER: Final = "whisper-v3:turbo"
EMBEDDER: Final = "embed-gemma:300m"


@dataclass(frozen=True)
class Known:
    """One model."""

    tag: str
    footprint: int  # bytes of its weights
    context: int  # tokens, when nobody says otherwise
    labels: tuple[str, ...] = ()
    cache: int = CACHE_UNKNOWN  # bytes a token
    installed: bool | None = None  # None: nobody was asked

    @property
    def kind(self) -> str:
        """As a place on the NPU is called: "asr", "embed", "llm"."""
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
KNOWN: Final[Mapping[str, Known]] = {
    tag: Known(tag, int(size * GB), context, tuple(labels.split()), cache * 1024)
    for tag, size, context, labels, cache in _ROWS
}


def of_listing(entry: Mapping[str, Any]) -> Known | None:
    """One model of `flm list --json`; None: that is none. What it does not say is taken from the table."""
    tag = entry.get("name")
    if not isinstance(tag, str) or not tag:
        return None
    table = KNOWN.get(tag)
    footprint, context, labels = entry.get("footprint"), entry.get("default_context_length"), entry.get("label")
    size = int(footprint * GB) if isinstance(footprint, int | float) else table.footprint if table else 0
    return Known(
        tag,
        size,
        context if isinstance(context, int) else table.context if table else 0,
        tuple(map(str, labels)) if isinstance(labels, list) else (),
        table.cache if table else CACHE_UNKNOWN,
        entry.get("installed") is True,
    )
