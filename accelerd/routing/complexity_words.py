"""The words by which a request's complexity is judged unless a route says otherwise.

Data: they must be LiteLLM's (1.110.2, router_strategy/complexity_router/config.py), so that a configuration means the
same here; tests/routing/tiers compares.
"""

from __future__ import annotations

from typing import Final

CODE: Final = (
    "function", "class", "def", "const", "let", "var", "import", "export", "return", "async", "await", "try", "catch",
    "exception", "error", "debug", "api", "endpoint", "request", "response", "database", "sql", "query", "schema",
    "algorithm", "implement", "refactor", "optimize", "python", "javascript", "typescript", "java", "rust", "golang",
    "react", "vue", "angular", "node", "docker", "kubernetes", "git", "commit", "merge", "branch", "pull request",
)  # fmt: skip

REASONING: Final = (
    "step by step", "think through", "let's think", "reason through", "analyze this", "break down",
    "explain your reasoning", "show your work", "chain of thought", "think carefully", "consider all", "evaluate",
    "pros and cons", "compare and contrast", "weigh the options", "logical", "deduce", "infer", "conclude",
)  # fmt: skip

TECHNICAL: Final = (
    "architecture", "distributed", "scalable", "microservice", "machine learning", "neural network", "deep learning",
    "encryption", "authentication", "authorization", "performance", "latency", "throughput", "benchmark",
    "concurrency", "parallel", "threading", "memory", "cpu", "gpu", "optimization", "protocol", "tcp", "http", "grpc",
    "websocket", "container", "orchestration",
)  # fmt: skip

SIMPLE: Final = (
    "what is", "what's", "define", "definition of", "who is", "who was", "when did", "when was", "where is",
    "where was", "how many", "how much", "yes or no", "true or false", "simple", "brief", "short", "quick", "hello",
    "hi", "hey", "thanks", "thank you", "goodbye", "bye", "okay",
)  # fmt: skip
