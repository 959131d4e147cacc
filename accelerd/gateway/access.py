"""Access to the TCP port: Host and Origin checks, which keep other web pages out, and API keys.

Pure: looks at headers, returns None or an AccelError. The unix socket needs none of this, its directory is private.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping

from accelerd.base.errors import AccelError
from accelerd.config import key_file
from accelerd.config.model import ServerSettings
from accelerd.system.activation import parse_listen

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/\s]+)(?::[0-9]{1,5})?", re.ASCII)


def host_name(authority: str) -> str:
    """The host of "host", "host:port" or "[v6]:port", in lower case; empty for anything else."""
    match = AUTHORITY.fullmatch(authority)
    return match[1].lower() if match else ""


def is_address(name: str) -> bool:
    """Is the host an address itself? Then no name server had a say, and no web page took its place by one."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def read_keys(path: str) -> tuple[bytes, ...]:
    """SHA-256 digests of the keys in a file. AccelError config_invalid: it cannot be used."""
    keys, reason = key_file.read(path)
    if reason:
        raise AccelError("config_invalid", f"server.key_file: {reason}")
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)


class Access:
    """The rules of one configuration."""

    def __init__(self, settings: ServerSettings, keys: tuple[bytes, ...]) -> None:
        listening = {ipaddress.ip_address(host) for text in settings.listen for host, _ in parse_listen(text)}
        own = (f"[{one}]" if one.version == 6 else str(one) for one in listening)
        self._hosts = frozenset(h.lower() for h in (*LOOPBACK, *own, *settings.allowed_hosts))
        self._everywhere = any(one.is_unspecified for one in listening)
        self._origins = frozenset(o.lower().rstrip("/") for o in settings.allowed_origins)
        self._keys = keys
        self._allowed_values: set[bytes] = set()  # whole Host values already found good: one look-up per request

    def check(self, headers: Mapping[bytes, bytes], *, open_to_all: bool = False) -> AccelError | None:
        """Why this request must not go on, None if it may. `unauthorized` only from where it may come.

        `headers`: names in lower case; `open_to_all`: no key is needed.
        """
        raw = headers.get(b"host", b"")
        host = raw.decode("latin-1")
        if raw not in self._allowed_values:
            name = host_name(host)
            if name not in self._hosts and not (self._everywhere and is_address(name)):
                shown = (name or host)[:100]
                text = f"the Host {shown!r} is not allowed; if it names this machine, add it to server.allowed_hosts"
                return AccelError("host_not_allowed", text)
            if len(self._allowed_values) < 256:
                self._allowed_values.add(raw)
        origin = value.decode("latin-1") if (value := headers.get(b"origin")) is not None else None
        if origin is not None and not self.allows_origin(origin, host):
            text = f"web pages from {origin[:100]!r} may not use this server; to allow it, set server.allowed_origins"
            return AccelError("origin_not_allowed", text)
        if origin is None and headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site"):
            return AccelError("origin_not_allowed", "web pages of other sites may not use this server")
        if self._keys and not open_to_all and not self._knows(headers):
            return AccelError("unauthorized", "a valid API key is required: send Authorization: Bearer KEY")
        return None

    def allows_origin(self, origin: str, host: str) -> bool:
        """Is it our own page, or one that the configuration names?"""
        return origin.lower() in self._origins or origin in (f"http://{host}", f"https://{host}")

    def _knows(self, headers: Mapping[bytes, bytes]) -> bool:
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            key = headers.get(b"x-api-key") or headers.get(b"api-key", b"")  # Anthropic's, Azure's
        digest = hashlib.sha256(key.strip()).digest()
        # Every key is compared, in constant time: nothing can be learned from how long it takes.
        return bool(sum([hmac.compare_digest(digest, known) for known in self._keys]))
