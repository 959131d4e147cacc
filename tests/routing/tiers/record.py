"""Asks LiteLLM for the tiers of all cases and writes them to recorded.json; `tests/routing/tiers/run` calls it.

Runs with the interpreter of an environment that has LiteLLM, and needs nothing else.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no network

sys.path.insert(0, str(Path(__file__).parent))  # alone: the packages above need more
import cases


def recorded() -> dict[str, Any]:
    import litellm
    from litellm.router_strategy.complexity_router import complexity_router

    tiers = {"SIMPLE": "s", "MEDIUM": "m", "COMPLEX": "c", "REASONING": "r"}
    models = [
        {
            "model_name": name,
            "litellm_params": {"model": f"openai/{name}", "api_base": "http://127.0.0.1:9", "api_key": "x"},
        }
        for name in tiers.values()
    ]
    smart = [
        {
            "model_name": name,
            "litellm_params": {
                "model": "auto_router/complexity_router",
                "complexity_router_config": {"tiers": tiers, **config},
            },
        }
        for name, config in cases.CONFIGS.items()
    ]
    plugins = litellm.Router(model_list=[*models, *smart]).registry().plugins("complexity")
    routers = {name: plugins[name][0].strategy for name in cases.CONFIGS}

    def judged(router: Any, prompt: str) -> list[Any]:
        tier, score, _ = router.classify(prompt)
        rule = router._lexical_tier_override(prompt)
        decided = tier if rule is None else rule.tier
        return [getattr(decided, "value", decided).lower(), score]

    return {
        "made by": f"tests/routing/tiers/run --record, with LiteLLM {version('litellm')}",
        "prompts": [
            {"prompt": prompt, "tiers": {name: judged(router, prompt) for name, router in routers.items()}}
            for prompt in cases.prompts()
        ],
        "asks": [
            complexity_router._extract_current_ask_and_system_prompt(messages)[0] or ""
            for messages in cases.CONVERSATIONS
        ],
    }


def main(arguments: list[str]) -> int:
    """0; 1 where LiteLLM now says something else and `--record` is not given."""
    file = cases.HERE / "recorded.json"
    found = recorded()
    if arguments == ["--record"]:
        lines = [json.dumps(entry, ensure_ascii=False) for entry in found["prompts"]]
        head = {key: value for key, value in found.items() if key != "prompts"}
        text = json.dumps(head, ensure_ascii=False)[:-1] + ', "prompts": [\n' + ",\n".join(lines) + "\n]}\n"
        file.write_text(text, encoding="utf-8")
        print(f"{len(found['prompts'])} prompts under {len(cases.CONFIGS)} configurations: {found['made by']}")
        return 0
    known = json.loads(file.read_text(encoding="utf-8"))
    changed = [new for new, old in zip(found["prompts"], known["prompts"], strict=True) if new != old]
    changed += [ask for ask, old in zip(found["asks"], known["asks"], strict=True) if ask != old]
    for entry in changed:
        print("LiteLLM now says:", json.dumps(entry, ensure_ascii=False))
    print(f"{len(changed)} of {len(known['prompts'])} prompts differ from what was recorded with {known['made by']}")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
