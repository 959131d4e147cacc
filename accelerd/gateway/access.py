"""Who may talk to the TCP port: the Host and Origin checks that keep browser pages out, and API keys.

Pure: looks at headers, answers None or an AccelError. The unix socket needs none of it, its directory is private.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from accelerd.config.model import ServerSettings
from accelerd.errors import AccelError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def host_name(authority: str) -> str:
    """The host of "host", "host:port" or "[v6]:port", in lower case."""
    host, bracket, _ = authority.rpartition("]")
    return (host + bracket if bracket else authority.partition(":")[0]).lower()


def read_keys(path: Path) -> tuple[bytes, ...]:
    """SHA-256 digests of the keys in a file, one a line, # comments. AccelError when others may read it."""
    try:
        with open(path, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            lines = file.read().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise AccelError("config_invalid", f"cannot read server.key_file {path}: {error}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise AccelError("config_invalid", f"others may read server.key_file {path}; run: chmod 600 {path}")
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise AccelError("config_invalid", f"server.key_file {path} holds no key")
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)


class Access:
    """The rules of one configuration."""

    def __init__(self, settings: ServerSettings, keys: tuple[bytes, ...]) -> None:
        self._hosts = frozenset(h.lower() for h in (*LOOPBACK, *settings.allowed_hosts))
        self._origins = frozenset(o.lower().rstrip("/") for o in settings.allowed_origins)
        self._keys = keys
        self._seen_hosts: set[str] = set()  # whole Host values already found good: one lookup on the hot path

    def check(self, headers: Mapping[str, str]) -> AccelError | None:
        """Why this request must not go on, None if it may."""
        host = headers.get("Host", "")
        if host not in self._seen_hosts:
            name = host_name(host)
            if name not in self._hosts:
                text = f"the Host {name!r} is not allowed; if it is yours, add it to server.allowed_hosts"
                return AccelError("host_not_allowed", text)
            if len(self._seen_hosts) < 256:
                self._seen_hosts.add(host)
        origin = headers.get("Origin")
        if origin is not None and not self.allows_origin(origin, host):
            text = (
                f"pages from {origin[:100]!r} may not use this server; if they should, add it to server.allowed_origins"
            )
            return AccelError("origin_not_allowed", text)
        if origin is None and headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
            return AccelError("origin_not_allowed", "pages of other sites may not use this server")
        if self._keys and not self._knows(headers):
            return AccelError("unauthorized", "a valid API key is needed: Authorization: Bearer KEY")
        return None

    def allows_origin(self, origin: str, host: str) -> bool:
        """Is it our own page, or one that the configuration names?"""
        return origin.lower() in self._origins or urlsplit(origin).netloc == host

    def _knows(self, headers: Mapping[str, str]) -> bool:
        scheme, _, key = headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            key = headers.get("X-Api-Key", "")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        # Every key is compared, in constant time: nothing can be learned from how long it takes.
        return bool(sum([hmac.compare_digest(digest, known) for known in self._keys]))
