"""Suggestions for keys that do not exist.

Owns the names that other programs use for accelerd's keys, and knows which section a misplaced key belongs to. Data and
look-ups only; must never accept such a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from accelerd.config.problems import closest, did_you_mean

# names that llama-server, llama-swap, Ollama and LiteLLM use
SYNONYMS: Final[Mapping[str, str]] = {
    "alias": "aliases", "args": "extra_args", "cmd": "path", "ctx": "context", "ctx_size": "context",
    "context_length": "context", "context_size": "context", "max_context": "context", "n_ctx": "context",
    "num_ctx": "context", "cache_type": "kv_cache_type", "cache_type_k": "kv_cache_type",
    "cache_type_v": "kv_cache_type", "environment": "env", "fa": "flash_attention", "flash_attn": "flash_attention",
    "file": "path", "filename": "path", "gguf": "path", "model_path": "path", "hf": "model", "hf_repo": "model",
    "repo": "model", "id": "model", "keep_alive": "idle_timeout", "ttl": "idle_timeout", "timeout": "start_timeout",
    "n_gpu_layers": "gpu_layers", "ngl": "gpu_layers", "num_gpu": "gpu_layers", "n_parallel": "parallel",
    "slots": "parallel", "np": "parallel", "max_concurrency": "concurrency", "concurrency_limit": "concurrency",
    "profiles": "profile", "profile": "profiles", "temp": "temperature", "embedding": "embeddings",
    "reranking": "rerank", "no_mmap": "mmap", "autoload": "preload", "load_on_start": "preload", "sticky": "pin",
    "batch_size": "batch", "ubatch_size": "ubatch", "host": "listen", "port": "listen", "bind": "listen",
    "api_key_file": "key_file", "cors_origins": "allowed_origins", "hosts": "allowed_hosts", "model": "models",
    "default": "defaults", "engine": "engines", "repetition_penalty": "repeat_penalty",
    "ram": "memory", "vram": "memory", "llama_server": "llama-server", "llamacpp": "llama-server",
    "llama.cpp": "llama-server", "macros": "profiles", "templates": "profiles",
    "backoff_first": "backoff_initial", "backoff_cap": "backoff_max", "tail": "hold_time",  # before 0.7.0
}  # fmt: skip


def hint(key: str, here: Sequence[str], elsewhere: Mapping[str, Sequence[str]]) -> str:
    """A suffix for "unknown key": a similar key of this table, or the section that the key belongs to, or nothing.

    `elsewhere` maps a key to the sections that know it.
    """
    meant = SYNONYMS.get(key.lower().replace("-", "_"))
    if meant in here:
        return f"; did you mean '{meant}'?"
    if key in elsewhere:
        return f"; it belongs in {' or '.join(elsewhere[key])}"
    suffix = did_you_mean(key, here)
    if suffix or not elsewhere:
        return suffix
    near = closest(key, list(elsewhere))
    return f"; did you mean '{near}', which belongs in {' or '.join(elsewhere[near])}?" if near else ""
