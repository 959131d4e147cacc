"""What other programs call the keys of accelerd.toml: llama-server, llama-swap, Ollama, LiteLLM, clients' libraries.

Data and a look-up only. A name that several tables know by different keys has several, the likeliest first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_SYNONYMS: Final[Mapping[str, str]] = {
    # what a model is, and its names
    "file": "path", "filename": "path", "gguf": "path", "model_path": "path", "hf": "model", "hf_repo": "model",
    "repo": "model", "id": "model", "model": "models", "model_list": "models", "model_name": "model aliases",
    "alias": "aliases", "model_group_alias": "aliases", "include_aliases_in_list": "unlisted", "name": "description",
    "metadata": "description", "model_info": "capabilities", "default": "defaults", "engine": "engines",
    "use_model_name": "served_name model", "profiles": "profile", "profile": "profiles", "macros": "profiles",
    "templates": "profiles", "filters": "variants", "set_params_by_id": "variants",
    # how it runs
    "args": "extra_args argv", "cmd": "path argv command", "environment": "env", "ctx": "context",
    "ctx_size": "context", "context_length": "context", "context_size": "context", "max_context": "context",
    "n_ctx": "context", "num_ctx": "context", "cache_type": "kv_cache_type", "cache_type_k": "kv_cache_type",
    "cache_type_v": "kv_cache_type", "fa": "flash_attention", "flash_attn": "flash_attention",
    "n_gpu_layers": "gpu_layers", "ngl": "gpu_layers", "num_gpu": "gpu_layers", "n_parallel": "parallel",
    "slots": "parallel", "np": "parallel", "embedding": "embeddings", "reranking": "rerank", "no_mmap": "mmap",
    "batch_size": "batch", "ubatch_size": "ubatch", "ot": "override_tensor", "override_tensors": "override_tensor",
    "ncmoe": "n_cpu_moe", "cmoe": "cpu_moe", "ncffn": "n_cpu_ffn", "sm": "split_mode", "ts": "tensor_split",
    "mg": "main_gpu", "loras": "lora", "lora_scaled": "lora", "spec_draft_n_max": "draft_max",
    "draft_n_max": "draft_max", "spec_draft_n_min": "draft_min", "draft_n_min": "draft_min",
    "spec_draft_p_min": "draft_p_min", "spec_draft_ngl": "draft_gpu_layers", "ngld": "draft_gpu_layers",
    "spec_draft_model": "draft_model", "model_draft": "draft_model", "rope_frequency_base": "rope_freq_base",
    "rope_frequency_scale": "rope_freq_scale", "ram": "memory", "vram": "memory", "device": "gpus", "gpu": "gpus",
    "llama_server": "llama-server", "llamacpp": "llama-server", "llama": "llama-server", "llama_cpp": "llama-server",
    "llama.cpp": "llama-server", "check_endpoint": "ready_path", "health_check_timeout": "start_timeout",
    "cmd_stop": "stop_timeout",
    # when it runs
    "keep_alive": "idle_timeout", "ttl": "idle_timeout", "global_ttl": "idle_timeout",
    "timeout": "start_timeout first_byte_timeout queue_timeout", "max_concurrency": "concurrency",
    "concurrency_limit": "concurrency", "max_parallel_requests": "concurrency", "rpm": "concurrency",
    "tpm": "concurrency", "autoload": "preload", "load_on_start": "preload", "hooks": "preload", "sticky": "pin",
    "groups": "group", "members": "group", "swap": "exclusive",
    # requests, and what is changed in them
    "temp": "temperature", "repetition_penalty": "repeat_penalty", "num_predict": "max_tokens",
    "system_prompt": "system", "system_message": "system", "strip_params": "remove", "drop_params": "remove",
    "additional_drop_params": "remove", "set_params": "set", "extra_body": "set", "override": "set",
    "overrides": "set",
    # servers, here and elsewhere
    "host": "listen url", "port": "listen url", "bind": "listen", "base_url": "url", "api_base": "url",
    "endpoint": "url", "address": "url listen", "key": "key_file", "api_key": "key_file", "api_keys": "key_file",
    "keys": "key_file", "api_key_file": "key_file", "master_key": "key_file", "token": "key_file",
    "verify": "ca_file", "ssl_verify": "ca_file", "verify_ssl": "ca_file", "tls_verify": "ca_file",
    "insecure": "ca_file", "ca": "ca_file", "cafile": "ca_file", "ca_bundle": "ca_file", "ca_cert": "ca_file",
    "extra_headers": "headers", "request_timeout": "first_byte_timeout queue_timeout",
    "stream_timeout": "stall_timeout", "cors_origins": "allowed_origins", "hosts": "allowed_hosts",
    "peers": "remotes", "general_settings": "server", "litellm_settings": "server", "router_settings": "routes",
    "litellm_params": "remotes", "http_proxy": "proxy", "https_proxy": "proxy",
    # routes
    "context_window_fallbacks": "context_fallbacks", "num_retries": "retries", "max_retries": "retries",
    "cooldown_time": "cooldown", "routing_strategy": "prefer", "complexity_router_config": "complexity",
    "complexity_router_default_model": "tiers", "escalation_keywords": "keyword_tier_rules",
    "custom_dimensions": "keyword_tier_rules",
    "backoff_first": "backoff_initial", "backoff_cap": "backoff_max", "tail": "hold_time",  # before 0.7.0
}  # fmt: skip
_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def meant_by(key: str) -> list[str]:
    """The keys that someone may mean who writes this one, as in "ctx-size" or "checkEndpoint"."""
    return _SYNONYMS.get(_HUMP.sub("_", key).lower().replace("-", "_"), "").split()
