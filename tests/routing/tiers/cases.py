"""What is asked of both: configurations, prompts and conversations. Needs neither LiteLLM nor accelerd.

The configurations are written with LiteLLM's keys, which are ours. Prompts are those of natural.txt and others that a
seeded generator makes of words, near words, other scripts, code, and lengths at the bounds.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
GENERATED: Final = 420
SEED: Final = 17

CONFIGS: Final[dict[str, dict[str, Any]]] = {
    "default": {},
    "weights": {
        "dimension_weights": {
            "tokenCount": 0.4, "codePresence": 0.2, "simpleIndicators": 0.3, "questionComplexity": 0.5,
        },
    },
    "bounds": {
        "tier_boundaries": {"simple_medium": -0.05, "complex_reasoning": 0.5},
        "token_thresholds": {"simple": 5, "complex": 40},
        "reasoning_override_min_score": 0.3,
    },
    "words": {
        "code_keywords": ["C++", "node.js", "função", "代码", "def", "DEF", "f(x)"],
        "custom_technical_keywords": ["Heat Pump", "GPU", "kernel", "架构", "Kernel"],
        "simple_keywords": ["please", "よろしく"],
        "reasoning_keywords": ["why", "how come", "なぜ"],
    },
    "rules": {
        "keyword_tier_rules": [
            {"keywords": ["invoice", "发票"], "tier": "MEDIUM"},
            {"keywords": [" prove ", "zebra"], "tier": "REASONING"},
            {"keywords": ["thank you"], "tier": "SIMPLE"},
            {"keywords": ["docker", "k3s"], "tier": "COMPLEX"},
        ],
        "reasoning_override_min_score": 0,
    },
}  # fmt: skip

PLAIN: Final = (
    "a", "about", "all", "and", "are", "as", "at", "be", "but", "by", "can", "could", "day", "did", "do", "does",
    "down", "for", "from", "get", "good", "had", "has", "have", "he", "her", "him", "house", "how", "if", "in",
    "into", "it", "just", "know", "like", "little", "long", "look", "make", "man", "many", "more", "most", "much",
    "my", "new", "not", "now", "of", "on", "one", "only", "or", "other", "our", "out", "over", "people", "see", "she",
    "so", "some", "tell", "than", "that", "the", "their", "them", "there", "these", "they", "thing", "this", "time",
    "to", "two", "up", "use", "very", "want", "was", "water", "way", "we", "were", "when", "which", "will", "with",
    "word", "work", "would", "write", "year", "you", "your",
)  # fmt: skip
NEAR: Final = (
    "capital", "classic", "definitely", "lettuce", "variable", "tryst", "catchy", "terror", "apiary", "rusted",
    "javanese", "nodes", "gitter", "committed", "hinterland", "okayish", "briefly", "shorten", "memoryless", "https",
    "httpd", "cpus", "logically", "inference", "simply", "quickly", "error_code", "pre-class", "class's", "x.error",
    "api_key", "\"function\"", "(return)", "sql;", "#python", "async/await", "step1", "steps",
)  # fmt: skip
CODE: Final = (
    "function", "class", "def", "import", "return", "async", "error", "api", "database", "sql", "algorithm", "python",
    "rust", "docker", "git", "commit", "merge", "branch", "query", "schema",
)  # fmt: skip
TECHNICAL: Final = (
    "architecture", "distributed", "scalable", "latency", "throughput", "memory", "gpu", "cpu", "tcp", "http",
    "container", "protocol", "encryption", "benchmark", "parallel", "threading",
)  # fmt: skip
PHRASES: Final = (
    "step by step", "think carefully", "pros and cons", "let's think", "chain of thought", "evaluate", "conclude",
    "machine learning", "neural network", "pull request", "what is", "what's", "thank you", "how many", "yes or no",
    "first this, then that", "First\nthen", "step 2", "step\u00a07", "3. ", "b) ", "C++", "node.js", "heat pump",
    "invoice", "k3s", "f(x)", "zebra", "fir\u017ft then", "\u0131) ", "\u212a) ", "\u0661. ", "STEP  9",
)  # fmt: skip
SCRIPTS: Final = (
    "我需要开发票", "代码", "なぜですか", "よろしくお願いします", "架构", "función", "função", "Größe", "straße",
    "İstanbul", "ﾃｽﾄ", "𠀀", "한국어", "привет", "مرحبا", "😀", "e\u0301rror", "\u2028", "\u200b",
)  # fmt: skip
MARKS: Final = (" ", " ", " ", " ", " ", ", ", ". ", "? ", "! ", "\n", "\t", "; ", " - ", "?")


def natural() -> list[str]:
    lines = (HERE / "natural.txt").read_text(encoding="utf-8").splitlines()
    return [line.replace("\\n", "\n") for line in lines]


def generated() -> list[str]:
    random_ = random.Random(SEED)
    return [_one(random_, number) for number in range(GENERATED)]


def _one(random_: random.Random, number: int) -> str:
    pools = [PLAIN, random_.choice((PLAIN, NEAR, CODE, TECHNICAL)), random_.choice((CODE, TECHNICAL, PHRASES, SCRIPTS))]
    words = []
    for _ in range(random_.randrange(1, 26)):
        word = random_.choice(pools[random_.randrange(3)])
        words.append(
            word.upper() if random_.randrange(12) == 0 else word.title() if random_.randrange(12) == 0 else word
        )
    text = "".join(word + random_.choice(MARKS) for word in words).rstrip(" ")
    if number % 7 == 0:  # characters at the bounds between numbers of tokens
        bound = random_.choice((20, 60, 160, 164)) if number % 42 else 1604
        text = (text + " " + "x" * bound)[: bound + random_.randrange(-1, 2)]
    return text


def prompts() -> list[str]:
    return list(dict.fromkeys([*natural(), *filter(None, generated())]))


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _text(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


_SYSTEM: Final = {"role": "system", "content": "You write Python. Think step by step."}
_TOOL: Final = [{"type": "tool_result", "tool_use_id": "1", "content": "def f(): pass"}]
_R: Final = "<system-reminder>do not forget the API</system-reminder>"

CONVERSATIONS: Final[list[list[dict[str, Any]]]] = [
    [],
    [_SYSTEM],
    [_user("hello")],
    [_SYSTEM, _user("hello")],
    [_user("first"), {"role": "assistant", "content": "x"}, _user("second")],
    [_user("first"), {"role": "assistant", "content": "x"}],
    [_user("run it"), {"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "error"}],
    [_user("run it"), {"role": "assistant", "content": "x"}, _user(_TOOL)],
    [_user("run it"), {"role": "assistant", "content": "x"}, _user([*_TOOL, *_text("and now?")])],
    [_user(_TOOL)],
    [_user(_text("one", "two"))],
    [_user(_text(" one ", ""))],
    [_user(_text("", ""))],
    [_user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}, *_text("what is this?")])],
    [_user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}])],
    [_user("   ")],
    [_user("")],
    [_user("before"), _user("  ")],
    [_user(f"{_R}fix it")],
    [_user(f"fix it\n{_R}\n")],
    [_user(f"fix {_R} it {_R}{_R}now")],
    [_user(_R)],
    [_user("a question"), _user(_R)],
    [_user("<SYSTEM-REMINDER>x</System-Reminder> still")],
    [_user("<system-reminder>not closed")],
    [_user("</system-reminder> only closed <system-reminder>")],
    [_user("<system-reminder>a<system-reminder>b</system-reminder>c</system-reminder>d")],
    [_user(_text(_R, "the ask"))],
    [_user(_text("<system-reminder>over", "two parts</system-reminder>rest"))],
    [_user(None)],
    [{"role": "developer", "content": "rules"}, _user("hi there")],
    [{"role": "User", "content": "wrong case"}, {"role": "assistant", "content": "x"}],
]
