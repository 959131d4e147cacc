"""Extra arguments and environment from the configuration: what may be passed on to llama-server, and what may not.

Extra arguments come last, so they win over accelerd's own. Refused is what accelerd must own to supervise (where it
listens, its key, which model), what would put a secret on the command line, and what lets a model run commands on the
machine. Pure.
"""

from __future__ import annotations

from typing import Final

from accelerd.engines.llama_server.features import Features

# name → why it is refused; every other name of the same option, and its environment variable, is refused with it
OWNED: Final[dict[str, str]] = {
    "--host": "accelerd decides where it listens",
    "--port": "accelerd decides where it listens",
    "--reuse-port": "another process could take over the port",
    "--api-prefix": "accelerd asks it at the usual paths",
    "--ssl-key-file": "accelerd talks to it in plain HTTP",
    "--ssl-cert-file": "accelerd talks to it in plain HTTP",
    "--api-key": "each start has its own key, which is never on a command line",
    "--api-key-file": "each start has its own key",
    "--hf-token": "a command line can be read by everybody: put HF_TOKEN into env",
    "--alias": "answers carry the configured name: use aliases",
    "--model": "write path or model",
    "--hf-repo": "write path or model",
    "--model-url": "write path or model",
    "--docker-repo": "write path or model",
    "--models-dir": "accelerd starts one server for each model itself",
    "--models-preset": "accelerd starts one server for each model itself",
    "--tools": "a model could run commands on this machine",
    "--tools-runtime": "a model could run commands on this machine",
    "--agent": "a model could run commands on this machine",
    "--mcp-servers-config": "a model could run commands on this machine",
    "--mcp-servers-json": "a model could run commands on this machine",
    "--ui-mcp-proxy": "web pages could reach other machines through it",
    "--log-prompts-dir": "prompts are never written to disk",
}
SECRET_VARIABLES: Final = frozenset({"HF_TOKEN"})  # may be set although its option may not


def normal(token: str) -> str:
    """An argument as llama-server compares it: underscores in a long name are dashes; a value after `=` is cut off."""
    name = token.partition("=")[0]
    return name.replace("_", "-") if name.startswith("--") else name


def owned(features: Features) -> dict[str, str]:
    """Every name and environment variable of the options that may not be set, with the reason."""
    reasons = dict(OWNED)
    for name, reason in OWNED.items():
        option = features.options.get(name)
        if option is not None:
            for other in (*option.names, *option.env):
                if other not in SECRET_VARIABLES:
                    reasons.setdefault(other, reason)
    return reasons


def check_arguments(extra: tuple[str, ...], features: Features) -> tuple[list[str], list[str]]:
    """Refusals and warnings. A value that looks like a refused option is refused too: which of the two it is, only the
    build knows."""
    reasons = owned(features)
    refusals: list[str] = []
    warnings: list[str] = []
    for token in extra:
        name = normal(token)
        if name in reasons:
            refusals.append(f"extra_args {name}: {reasons[name]}")
            continue
        if not name.startswith("--") or len(name) == 2:
            continue  # a value, or a short name that could be a negative number
        option = features.options.get(name)
        if option is None:
            warnings.append(f"extra_args {name} is not in the help of this build: it may refuse to start")
        elif option.removed:
            refusals.append(f"extra_args {name}: {option.text}")
    return refusals, warnings


def check_environment(names: tuple[str, ...], features: Features) -> list[str]:
    """Refusals for environment variables of the configuration."""
    reasons = owned(features)
    return [f"env {name}: {reasons[name]}" for name in names if name in reasons]
