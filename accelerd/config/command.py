"""The settings of the engine `command`: how any program that serves HTTP is started, and what it can do.

Presets for well-known programs are data, in presets.toml beside this file; a model's own keys win over its preset's.
Pure data.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from accelerd.config import values as toml
from accelerd.config.keys import array, each_once, key
from accelerd.config.problems import closest

CommandTask = Literal[
    "chat", "completions", "embeddings", "rerank", "transcription", "speech", "images", "messages", "responses",
    "tools", "vision", "audio", "ollama", "llama-server",
]  # fmt: skip
_BRACED: Final = re.compile(r"\{\{([A-Za-z_]\w*)\}\}|\{([A-Za-z_]\w*)\}", re.ASCII)  # a literal one, a placeholder
PLACEHOLDERS: Final = ("port", "socket", "model", "name", "key_file", "context", "parallel")
IN_REQUESTS: Final = ("name", "model")


def placeholders(text: str) -> list[str]:
    """The names in braces. Doubled braces and others, such as those of JSON, stand for themselves."""
    return [found[2] for found in _BRACED.finditer(text) if found[2]]


def filled(text: str, given: Mapping[str, str]) -> str:
    """With values in place of placeholders, and {{x}} as {x}."""
    return _BRACED.sub(lambda found: "{" + found[1] + "}" if found[1] else given[found[2]], text)


def _with(known: Sequence[str], check: toml.Parse = str) -> toml.Parse:
    """Refuses other placeholders than these; ValueError with what completes "expected …"."""

    def checked(value: str) -> Any:
        for name in placeholders(value):
            if name not in known:
                there_are = ", ".join(f"{{{one}}}" for one in known)
                hint = f"did you mean {{{near}}}? " if (near := closest(name, known)) else ""
                dollar = "there is no $ before them; " if f"${{{name}}}" in value else ""
                literal = f"({hint}{dollar}a literal {{{name}}} is written {{{{{name}}}}})"
                raise ValueError(f"one of the placeholders {there_are} in place of {{{name}}} {literal}")
        return check(value)

    return checked


def _variable(value: str) -> str:
    name, equals, _ = value.partition("=")
    if not equals or not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError('NAME=VALUE, such as "OLLAMA_HOST=127.0.0.1:{port}"')
    return value


def _before_equals(pair: str) -> str:
    return pair.partition("=")[0]


@dataclass(frozen=True)
class CommandSettings:
    """How engine = "command" starts a program that serves HTTP, and what the program can do."""

    preset: str | None = key(
        toml.TextLine, None, 'A program that accelerd knows, such as "whisper.cpp"; see docs/engines.md.'
    )
    argv: tuple[str, ...] = key(
        array(toml.argument(_with(PLACEHOLDERS))),
        (),
        "The program and its arguments, one string each, without a shell. {port} or {socket} is where it shall listen, "
        "{model} the file of `path` or the name of `model`; {name}, {context}, {parallel} and {key_file} can be used, "
        "too. {{x}} is literally {x}.",
    )
    environment: tuple[str, ...] = key(
        each_once(toml.argument(_with(PLACEHOLDERS, _variable)), _before_equals, "error"),
        (),
        'Variables with placeholders, such as "OLLAMA_HOST=127.0.0.1:{port}"; all others are written in `env`.',
    )
    inherit: tuple[str, ...] = key(
        each_once(toml.EnvName),
        (),
        "Variables that it takes over from accelerd's own environment, beside PATH, HOME, the language and what "
        "chooses GPUs.",
    )
    api: tuple[CommandTask, ...] = key(
        each_once(CommandTask),
        (),
        'What it can do, as in `capabilities` of GET /v1/models; "ollama" is a chat by Ollama\'s API (/api/chat), '
        '"llama-server" llama-server\'s own paths (/completion, /tokenize, …).',
    )
    paths: tuple[str, ...] = key(
        each_once(toml.PathPair, _before_equals, "error"),
        (),
        'Paths that differ from OpenAI\'s, such as "/v1/rerank=/rerank".',
    )
    translation_fields: tuple[str, ...] = key(
        array(toml.FormField),
        (),
        "What a form for its path for transcriptions must have so that it translates into English, such as "
        '"translate=true". Without it, POST /v1/audio/translations is passed on as it is.',
    )
    served_name: str | None = key(
        toml.line(_with(IN_REQUESTS)),
        None,
        "What requests must have in the field model; {name} and {model} can be used. Default: what clients write.",
    )
    ready_path: str = key(toml.UrlPath, "/health", "A path that is asked with GET while the program starts.")
    ready_status: int = key(int, 200, "The status there that says that it is ready.", ge=200, le=599)
    probe_path: str | None = key(
        toml.UrlPath, None, "A path that answers one tiny request only if the model works; asked before it is ready."
    )
    probe_body: str | None = key(
        toml.json_text(_with(PLACEHOLDERS)),
        None,
        "The JSON body of that request, with placeholders as in `argv`. Default: it is asked with GET.",
    )
    not_found_hint: str | None = key(
        toml.line(_with(PLACEHOLDERS)),
        None,
        'What to do if it answers that request with status 404, such as "run: ollama pull {model}".',
    )
    key_env: str | None = key(
        toml.EnvName, None, "The environment variable for the key that accelerd makes for each start."
    )
    device: Literal["cpu", "gpu"] = key(
        Literal["cpu", "gpu"],
        "cpu",
        "What its memory is counted on, until it was measured: a GPU only if there is one.",
    )

    @property
    def placeholders(self) -> frozenset[str]:
        """Of its command line and its environment."""
        return frozenset(name for word in (*self.argv, *self.environment) for name in placeholders(word))

    def has(self, placeholder: str) -> str:
        """The first key that has this placeholder; empty: none."""
        texts = (("argv", self.argv), ("environment", self.environment), ("served_name", (self.served_name or "",)))
        more = (("probe_body", (self.probe_body or "",)), ("not_found_hint", (self.not_found_hint or "",)))
        return next((key for key, words in (*texts, *more) for word in words if placeholder in placeholders(word)), "")


@dataclass(frozen=True)
class Preset:
    """A program that accelerd knows."""

    title: str
    source: str  # URL of what the settings were read in
    version: str  # of that
    tried: Literal["run", "stand-in", "read"]  # how the settings were tested: see presets.toml
    settings: CommandSettings


@cache
def presets() -> Mapping[str, Preset]:
    """By name."""
    tables = tomllib.loads(Path(__file__).with_name("presets.toml").read_text(encoding="utf-8"))
    return {name: _preset(table) for name, table in tables.items()}


def _preset(table: Mapping[str, Any]) -> Preset:
    about = {name: table[name] for name in ("title", "source", "version", "tried")}
    values = {
        name: tuple(value) if isinstance(value, list) else value for name, value in table.items() if name not in about
    }
    return Preset(**about, settings=msgspec.convert(values, CommandSettings))


def of_preset(name: str | None) -> dict[str, Any]:
    """What a preset says, by field; nothing for one that is not known."""
    known = presets().get(name) if name is not None else None
    usual = CommandSettings()
    return {
        each.name: value
        for each in fields(CommandSettings)
        if known is not None and (value := getattr(known.settings, each.name)) != getattr(usual, each.name)
    }
