"""The llama-server flags and environment variables that a configuration must not set, and why.

Data and look-ups only. The lists follow llama-server's help text; flags that a build does not have do no harm here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_CHANNEL: Final = "accelerd manages the address of the engine"
_SECRET: Final = "accelerd generates a key for each start of an engine"
_ALIAS: Final = "accelerd sets the name of the model; use `aliases` for additional names"
_WHICH: Final = "select the model with `path` or `model`"
_FILES: Final = "it would serve files of this machine over HTTP"
_TOOLS: Final = "it lets everyone who can send a prompt run commands and read files on this machine"
_ROUTER: Final = "accelerd loads and unloads models; give each one its own [models.NAME]"
_ARGV: Final = "accelerd downloads models itself; docs/models.md says where it finds the token"
_PROMPTS: Final = "it writes prompts to disk"
_CONTEXT: Final = "accelerd calculates it; set context = … (tokens per request) instead"
_PARALLEL: Final = "accelerd must know it to distribute requests; set parallel = … instead"
_EXITS: Final = "the engine would print something and exit"

_OWNED_GROUPS: Final[Mapping[str, str]] = {
    "--host --port --reuse-port --api-prefix --ssl-key-file --ssl-cert-file": _CHANNEL,
    "--cors-origins --cors-methods --cors-headers --cors-credentials --no-cors-credentials": _CHANNEL,
    "--api-key --api-key-file": _SECRET,
    "--alias -a": _ALIAS,
    "--model -m --model-url -mu --hf-repo -hf -hfr --hf-file -hff --docker-repo -dr": _WHICH,
    "--path --media-path": _FILES,
    "--tools --tools-runtime --agent -ag --ui-mcp-proxy --webui-mcp-proxy": _TOOLS,
    "--models-dir --models-preset --models-max --models-autoload --no-models-autoload": _ROUTER,
    "--hf-token -hft": _ARGV,
    "--log-prompts-dir": _PROMPTS,
    "--ctx-size -c": _CONTEXT,
    "--parallel -np": _PARALLEL,
    "--help -h --usage --version --list-devices --cache-list -cl --completion-bash --license": _EXITS,
}
_OWNED: Final = {flag: why for flags, why in _OWNED_GROUPS.items() for flag in flags.split()}
_OWNED_PREFIXES: Final[Mapping[str, str]] = {"--mcp-": _TOOLS}

_SETTINGS_GROUPS: Final[Mapping[str, str]] = {
    "--cache-type-k -ctk --cache-type-v -ctv": "kv_cache_type",
    "--cache-ram -cram": "prompt_cache",
    "--flash-attn -fa": "flash_attention",
    "--gpu-layers --n-gpu-layers -ngl": "gpu_layers",
    "--batch-size -b": "batch",
    "--ubatch-size -ub": "ubatch",
    "--threads -t": "threads",
    "--mmproj -mm": "mmproj",
    "--spec-draft-model --model-draft -md": "draft_model",
    "--device -dev": "gpus",
    "--split-mode -sm": "split_mode",
    "--main-gpu -mg": "main_gpu",
    "--tensor-split -ts": "tensor_split",
    "--override-tensor -ot": "override_tensor",
    "--cpu-moe -cmoe": "cpu_moe",
    "--n-cpu-moe -ncmoe": "n_cpu_moe",
    "--n-cpu-ffn -ncffn": "n_cpu_ffn",
    "--fit -fit": "fit",
    "--fit-target -fitt": "fit_target",
    "--fit-ctx -fitc": "fit_ctx",
    "--lora --lora-scaled --lora-init-without-apply": "lora",
    "--mmproj-offload --no-mmproj-offload": "mmproj_offload",
    "--mmproj-device -mmdev": "mmproj_device",
    "--spec-type": "spec_type",
    "--spec-draft-n-max --draft-max --draft-n --draft": "draft_max",
    "--spec-draft-n-min --draft-min --draft-n-min": "draft_min",
    "--spec-draft-p-min --draft-p-min": "draft_p_min",
    "--spec-draft-ngl -ngld --gpu-layers-draft --n-gpu-layers-draft": "draft_gpu_layers",
    "--spec-draft-type-k --cache-type-k-draft -ctkd": "draft_kv_cache_type",
    "--spec-draft-type-v --cache-type-v-draft -ctvd": "draft_kv_cache_type",
    "--rope-scaling": "rope_scaling",
    "--rope-scale": "rope_scale",
    "--rope-freq-base": "rope_freq_base",
    "--rope-freq-scale": "rope_freq_scale",
    "--yarn-orig-ctx": "yarn_orig_ctx",
    "--yarn-ext-factor": "yarn_ext_factor",
    "--yarn-attn-factor": "yarn_attn_factor",
    "--yarn-beta-slow": "yarn_beta_slow",
    "--yarn-beta-fast": "yarn_beta_fast",
    "--chat-template-file": "chat_template_file",
    "--embedding --embeddings": "embeddings",
    "--rerank --reranking": "rerank",
    "--mmap --no-mmap": "mmap",
    "--temp --temperature": "sampling.temperature",
    "--top-p": "sampling.top_p",
    "--top-k": "sampling.top_k",
    "--min-p": "sampling.min_p",
    "--repeat-penalty": "sampling.repeat_penalty",
    "--presence-penalty": "sampling.presence_penalty",
    "--frequency-penalty": "sampling.frequency_penalty",
    "--seed -s": "sampling.seed",
    "--predict --n-predict -n": "sampling.max_tokens",
}
_SETTINGS: Final = {flag: key for flags, key in _SETTINGS_GROUPS.items() for flag in flags.split()}

# Flags whose setting has another name.
_DECIDED: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(("--cache-type-k", "-ctk"), ("cache_type_k",)),
    **dict.fromkeys(("--cache-type-v", "-ctv"), ("cache_type_v",)),
    **dict.fromkeys(("--spec-draft-type-k", "--cache-type-k-draft", "-ctkd"), ("draft_cache_type_k",)),
    **dict.fromkeys(("--spec-draft-type-v", "--cache-type-v-draft", "-ctvd"), ("draft_cache_type_v",)),
    **dict.fromkeys(("--load-mode", "-lm", "--direct-io", "-dio", "--mlock"), ("mmap",)),
}
_TWO_WORDS: Final = re.compile(r"(--?[A-Za-z][\w-]*)\s.*", re.DOTALL)  # a flag as a shell would take it apart
_EXPANSION: Final = re.compile(r"^~/|\$\{[A-Za-z_]\w*\}|^\$[A-Za-z_]\w*|\$\(|^`")


def refused(argument: str) -> str | None:
    """Why an element of extra_args is refused, with the flag's name; None if it is allowed."""
    if (two := _TWO_WORDS.fullmatch(argument)) is not None:
        return f'{two[1]} and its value are one word here; write them as two: "{two[1]}", "…"'
    flag = flag_name(argument)
    why = why_owned(flag)
    return f"{flag} is not allowed: {why}" if why else None


def why_owned(flag: str) -> str | None:
    """Why a user must not set a flag; None: it may be set."""
    by_prefix = (reason for prefix, reason in _OWNED_PREFIXES.items() if flag.startswith(prefix))
    return _OWNED.get(flag) or next(by_prefix, None)


def better(argument: str) -> str | None:
    """Advice for an element of extra_args that has its own setting."""
    flag = flag_name(argument)
    key = _SETTINGS.get(flag)
    return f"{flag} has its own setting: use {key} = … so that accelerd can take it into account" if key else None


def settings_of(argument: str) -> tuple[str, ...]:
    """The fields of ModelSpec that an element of extra_args overrides."""
    flag = flag_name(argument)
    return _DECIDED.get(flag, (_SETTINGS[flag],) if flag in _SETTINGS else ())


def refused_variable(name: str) -> str | None:
    """Why an environment variable is refused; None if it is allowed."""
    if name == "LLAMA_API_KEY":
        return f"cannot set {name}: {_SECRET}"
    if name.startswith("LLAMA_ARG_"):
        return f"cannot set {name}: it is equivalent to a llama-server flag; use the setting or extra_args"
    if name.startswith("ACCELERD_"):
        return f"cannot set {name}: accelerd uses its own variables to recognise its processes"
    return None


def unexpanded(text: str) -> bool:
    """Does it look as if the user expects shell expansion? Nothing is expanded."""
    return _EXPANSION.search(text) is not None


def flag_name(argument: str) -> str:
    """The flag of "--api_key=x" as llama-server reads it: "--api-key". Other text is returned unchanged."""
    if not argument.startswith("-"):
        return argument
    flag = argument.partition("=")[0]
    return flag.replace("_", "-") if flag.startswith("--") else flag
