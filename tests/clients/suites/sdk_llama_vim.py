"""What llama.vim and llama.vscode ask of llama-server, replayed from their sources (llama.vim a1c8e6e, llama.vscode
3938fb3): editors are not started. Both write an empty name of the model, or none, unless one is configured.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from checks import CHAT, Target, check, main

EXTRA = [{"text": "def add(a, b):\n    return a + b\n", "filename": "sums.py"}]
AROUND = {
    "id_slot": 0,
    "input_prefix": "def sub(a, b):\n",
    "input_suffix": "\n\nprint(sub(3, 2))",
    "input_extra": EXTRA,
}
FIELDS = ["content", "timings/prompt_n", "timings/predicted_n", "truncated", "tokens_cached"]
SAMPLERS = {"top_k": 40, "samplers": ["top_k", "top_p", "infill"], "cache_prompt": True, "t_max_prompt_ms": 500}


def ask(target: Target, path: str, body: Any = None) -> Any:
    headers = {"Content-Type": "application/json"} if body is not None else {}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(target.root + path, data, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def infill(target: Target, **more: Any) -> Any:
    return ask(target, "/infill", {**AROUND, "prompt": "    ", "stream": False, **SAMPLERS, **more})


@check
def vim_fills_in(target: Target) -> Any:
    more = {"n_predict": 128, "stop": [], "n_indent": 4, "top_p": 0.9, "t_max_predict_ms": 1000, "model": ""}
    found = infill(target, **more, response_fields=FIELDS)
    return found["content"], found["truncated"], found["timings/predicted_n"], sorted(found)


@check
def vim_fills_in_with_the_model_named(target: Target) -> Any:
    return infill(target, n_predict=8, top_p=0.9, model=CHAT, response_fields=["content"])


@check
def vim_warms_the_cache(target: Target) -> Any:
    nothing = {"input_prefix": "", "input_suffix": "", "prompt": "", "samplers": [], "n_predict": 0, "temperature": 0.0}
    return infill(target, **nothing, t_max_prompt_ms=1, t_max_predict_ms=1, response_fields=[""], model="")


@check
def vim_instructs(target: Target) -> Any:
    body = {"id_slot": 0, "messages": [{"role": "user", "content": "shorten it"}], "min_p": 0.1, "temperature": 0.1}
    body |= {"samplers": ["min_p", "temperature"], "stream": True, "cache_prompt": True, "model": ""}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{target.url}/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        lines = [line[6:] for line in answer.read().splitlines() if line.startswith(b"data: {")]
    return "".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines)


@check
def vscode_fills_in(target: Target) -> Any:
    found = infill(target, n_predict=8, n_cmpl=1, top_p=0.99, t_max_predict_ms=500, n_indent=4)
    return found["content"], found["stop_type"]


@check
def vscode_wants_several(target: Target) -> Any:
    """Which llama-server has only with as many slots."""
    found = infill(target, n_predict=8, n_cmpl=3, top_p=0.99, t_max_predict_ms=500, n_indent=4, model=CHAT)
    return [(one["index"], one["content"]) for one in found]


@check
def vscode_warms_the_cache(target: Target) -> Any:
    body = {**AROUND, "prompt": "", "n_predict": 0, "samplers": [], "cache_prompt": True}
    return ask(target, "/infill", {**body, "t_max_prompt_ms": 500, "t_max_predict_ms": 1})["content"]


@check
def vscode_counts_tokens(target: Target) -> Any:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "good day"}]
    prompt = ask(target, "/apply-template", {"messages": messages, "model": CHAT})["prompt"]
    return ask(target, "/tokenize", {"content": prompt, "add_special": False, "parse_special": True})["tokens"]


@check
def vscode_asks_how_long_prompts_may_be(target: Target) -> Any:
    """Which loads nothing, and is known of a model that is not loaded."""
    query = urllib.parse.urlencode({"model": CHAT, "autoload": "false"})
    return ask(target, f"/props?{query}")["default_generation_settings"]["n_ctx"]


@check
def vscode_asks_whether_it_is_there(target: Target) -> Any:
    return ask(target, "/health")


if __name__ == "__main__":
    main()
