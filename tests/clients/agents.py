"""Programs that work with a model by themselves: each is asked one thing, with a home of its own and a dummy key.

The model of the tests answers every prompt with REPLY and calls no tool: a call that its grammar filled with anything
would be carried out. What is compared is that the program prints the reply and ends well.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.clients.compare import Result
from tests.clients.targets import AGENT_CONTEXT, REPLY, Target

KEY, MODEL, PROMPT = "sk-dummy", "chat", "good day"
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
LIMIT = 240  # s
TAIL = 400  # characters of what a program printed at last


@dataclass(frozen=True)
class Place:
    """Where an agent is at home while it runs, and where its programs are."""

    home: Path
    modules: Path  # of npm
    python: Path  # of the environment that has llm
    aider: Path  # of the environment that has aider

    def npm(self, name: str) -> str:
        return str(self.modules / "node_modules/.bin" / name)

    def write(self, path: str, text: str) -> Path:
        file = self.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file


@dataclass(frozen=True)
class Agent:
    name: str
    command: Callable[[Place, Target], list[str]]
    env: Callable[[Target], dict[str, str]] = field(default=lambda target: {})

    def run(self, place: Place, target: Target, env: dict[str, str]) -> Result:
        work = place.home / "work"
        work.mkdir()
        command = self.command(place, target)
        try:
            done = subprocess.run(
                command, env={**env, **self.env(target)}, cwd=work, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, timeout=LIMIT, check=False,
            )  # fmt: skip
            printed, status = done.stdout.decode(errors="replace"), str(done.returncode)
        except subprocess.TimeoutExpired as error:
            printed, status = (error.stdout or b"").decode(errors="replace"), f"none within {LIMIT} s"
        replied = REPLY in " ".join(printed.split())
        ok = replied and status == "0"
        says = "" if ok else f"status {status}: …{' '.join(printed.split())[-TAIL:]}"
        return Result(self.name, "asks and prints the answer", target.name, ok, {"replied": replied}, says)


def claude(place: Place, target: Target) -> list[str]:
    return [place.npm("claude"), "-p", PROMPT, "--model", MODEL, "--max-turns", "4"]


def claude_env(target: Target) -> dict[str, str]:
    return {
        "ANTHROPIC_BASE_URL": target.root,
        "ANTHROPIC_AUTH_TOKEN": KEY,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": MODEL,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    }


def codex(place: Place, target: Target) -> list[str]:
    provider = f'{{name="local",base_url="{target.url}",wire_api="responses",env_key="LOCAL_KEY"}}'
    settings = ['model_provider="local"', f"model_providers.local={provider}", f"model_context_window={AGENT_CONTEXT}"]
    options = [word for one in settings for word in ("-c", one)]
    return [place.npm("codex"), "exec", "--skip-git-repo-check", "-s", "read-only", *options, "-m", MODEL, PROMPT]


def opencode(place: Place, target: Target) -> list[str]:
    local = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "local",
        "options": {"baseURL": target.url, "apiKey": KEY},
        "models": {MODEL: {"name": MODEL, "limit": {"context": AGENT_CONTEXT, "output": 1024}}},
    }
    settings: dict[str, Any] = {"provider": {"local": local}, "model": f"local/{MODEL}", "autoupdate": False}
    place.write(".config/opencode/opencode.json", json.dumps(settings))
    return [place.npm("opencode"), "run", "-m", f"local/{MODEL}", PROMPT]


def qwen(place: Place, target: Target) -> list[str]:
    endpoint = ["--auth-type", "openai", "--openai-api-key", KEY, "--openai-base-url", target.url]
    return [place.npm("qwen"), *endpoint, "-m", MODEL, "-y", PROMPT]


def cline(place: Place, target: Target) -> list[str]:
    login = [place.npm("cline"), "auth", "-p", "openai-compatible", "-k", KEY, "-m", MODEL, "-b", target.url]
    ask = [place.npm("cline"), "-P", "openai-compatible", "-m", MODEL, "--retries", "2", "-t", "120", PROMPT]
    return ["sh", "-c", 'a=$1; shift; eval "$a" >/dev/null && exec "$@"', "sh", " ".join(map(repr, login)), *ask]


def continue_cli(place: Place, target: Target) -> list[str]:
    config = place.write(
        "config.yaml",
        f"name: local\nversion: 1.0.0\nschema: v1\nmodels:\n  - name: local\n    provider: openai\n    model: {MODEL}\n"
        f"    apiBase: {target.url}\n    apiKey: {KEY}\n    roles: [chat]\n",
    )
    return [place.npm("cn"), "-p", PROMPT, "--config", str(config)]


def aider(place: Place, target: Target) -> list[str]:
    options = ["--no-git", "--yes-always", "--no-check-update", "--analytics-disable", "--no-show-model-warnings"]
    endpoint = ["--openai-api-base", target.url, "--openai-api-key", KEY, "--model", f"openai/{MODEL}"]
    return [str(place.aider / "bin/aider"), *options, *endpoint, "--no-stream", "--message", PROMPT]


def llm(place: Place, target: Target) -> list[str]:
    place.write(
        ".config/io.datasette.llm/extra-openai-models.yaml",
        f"- model_id: local\n  model_name: {MODEL}\n  api_base: {target.url}\n",
    )
    return [str(place.python / "bin/llm"), "-m", "local", "--key", KEY, PROMPT]


AGENTS = [
    Agent("claude", claude, claude_env),
    Agent("codex", codex, lambda target: {"LOCAL_KEY": KEY}),
    Agent("opencode", opencode),
    Agent("qwen-code", qwen, lambda target: dict.fromkeys(PROXIES, "")),  # it goes to a proxy whatever NO_PROXY says
    Agent("cline", cline),
    Agent("continue", continue_cli),
    Agent("aider", aider),
    Agent("llm", llm, lambda target: {"OPENAI_API_KEY": KEY}),
]
