"""Remotes: servers elsewhere that answer requests for models of the engine `remote`. Their keys in accelerd.toml.

Pure data, as config/model.py is. A remote's URL is the operator's alone: no client and no server can name another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Literal
from urllib.parse import urlsplit

from accelerd.base.names import ANY
from accelerd.config import values as toml
from accelerd.config.keys import array, key, named

RemoteApi = Literal["openai", "anthropic", "ollama", "accelerd"]
RemoteTask = Literal[
    "chat", "completions", "embeddings", "rerank", "transcription", "speech", "images", "messages", "responses",
    "tools", "vision", "audio", "ollama", "llama-server",
]  # fmt: skip
# What somebody has put on a machine is few and meant to be used; of a cloud's list nobody has chosen anything.
OFFERED: Final[Mapping[RemoteApi, tuple[str, ...]]] = {
    "openai": (), "anthropic": (), "ollama": (ANY,), "accelerd": (),
}  # fmt: skip


@dataclass(frozen=True)
class Remote:
    """A server elsewhere."""

    name: str
    url: str = key(
        toml.RemoteUrl,
        "",
        'Its address, such as "https://mac.lan:1234/v1". Everything that is sent to its models leaves this machine.',
    )
    api: RemoteApi = key(
        RemoteApi,
        "openai",
        "What it speaks: OpenAI's API, Anthropic's, Ollama's, or OpenAI's with what another accelerd tells beside.",
    )
    models: tuple[str, ...] | None = key(
        array(toml.Name),
        None,
        'Which of its models can be asked for as "REMOTE/MODEL" without a table of their own: names, with * for any '
        'letters. Default: ["*"] with api = "ollama", else none.',
    )
    key_file: str | None = key(
        toml.FilePath, None, "File with its API key in the first line, that only you can read (mode 0600)."
    )
    credential: str | None = key(
        toml.CredentialName,
        None,
        "Instead of key_file: the name of a systemd credential of accelerd's unit (LoadCredential=) that has the key.",
    )
    ca_file: str | None = key(
        toml.FilePath, None, "File with the certificates (PEM) to trust instead of those of the system."
    )
    # may hold tokens: never shown
    headers: tuple[tuple[str, str], ...] = key(
        named(toml.HeaderName, toml.HeaderValue), (), "Additional headers of every request.", repr=False
    )
    proxy: str | None = key(
        toml.ProxyUrl, None, 'An HTTP proxy, such as "http://proxy.lan:3128". The environment names none.'
    )
    connect_timeout: float = key(toml.Duration, 10.0, "Time limit for connecting, TLS included.")
    first_byte_timeout: float = key(toml.Duration, 300.0, "Time limit until it begins to answer.")
    stall_timeout: float = key(toml.Duration, 120.0, "Time limit for each pause while it answers.")

    @property
    def key_header(self) -> str:
        """The header that its key is sent in."""
        return "x-api-key" if self.api == "anthropic" else "Authorization"

    @property
    def in_the_clear(self) -> bool:
        """Can others read on the way what is sent to it?"""
        host = urlsplit(self.url).hostname or ""
        try:
            here = ip_address(host).is_loopback
        except ValueError:
            here = host == "localhost" or host.endswith(".localhost")
        return self.url.startswith("http:") and not here

    @property
    def patterns(self) -> tuple[str, ...]:
        """Of the names of models that it offers."""
        return self.models if self.models is not None else OFFERED[self.api]

    def offers(self, model: str) -> bool:
        """Is it asked for a model of this name, if it has one?"""
        return any(re.fullmatch(".*".join(map(re.escape, pattern.split(ANY))), model) for pattern in self.patterns)

    def address(self, path: str) -> str:
        """The URL of a path: "/v1/chat/completions" of OpenAI's or Anthropic's API, or "/api/tags" of Ollama's."""
        if not path.startswith("/v1/"):
            return self.root(path)
        base = self.url.rstrip("/")
        return base + (path.removeprefix("/v1") if urlsplit(base).path else path)

    def root(self, path: str) -> str:
        """The URL of a path beside /v1, such as Ollama's "/api/tags"."""
        return self.url.rstrip("/").removesuffix("/v1") + path
