"""One remote's HTTP client: aiohttp's, with the operator's key, certificates, headers, proxy and limits.

aiohttp and the certificates are loaded in a thread with the first request. Follows no redirect, keeps no cookie, and
takes nothing from the environment but the folder of systemd's credentials. Its errors name the remote and what is
wrong, never an address and never a key: clients get to see them.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from accelerd.base.decoding import from_json
from accelerd.config import key_file
from accelerd.config.remotes import Remote
from accelerd.engines.http import REFUSED, HttpError

if TYPE_CHECKING:
    import aiohttp  # loaded with the first request: it is large

log = logging.getLogger(__name__)

ANTHROPIC_VERSION: Final = "2023-06-01"
LARGEST: Final = 8 << 20  # bytes of an answer to a question of our own
# OpenSSL's numbers for what is wrong with a certificate: its texts name hosts.
CERTIFICATES: Final[Mapping[int, str]] = {
    9: "is not valid yet",
    10: "has expired",
    18: "is signed by itself: name it in ca_file if it is yours",
    19: "is signed by an authority that this machine does not trust: name that in ca_file",
    20: "is signed by an authority that this machine does not trust: name that in ca_file",
    21: "is signed by an authority that this machine does not trust: name that in ca_file",
    62: "is for another name",
    64: "is for another address",
}


class RemoteError(HttpError):
    """A remote has not answered. The text begins with its name and is for everybody; `detail` for the log alone."""

    def __init__(self, remote: Remote, problem: str, detail: str = "") -> None:
        super().__init__(f"the remote {remote.name}: {problem}")
        self.problem = problem
        self.detail = detail


class RemoteClient:
    """Sends requests to one remote. `close` when it is not configured any more."""

    def __init__(self, remote: Remote, environ: Mapping[str, str]) -> None:
        self.remote = remote
        self._environ = environ
        self._session: aiohttp.ClientSession | None = None
        self._opening = asyncio.Lock()
        self._headers: dict[str, str] | None = None  # with the key; None: to be read again
        self._key = ""
        self._told = ""  # the trouble that was logged last
        self._under_way = 0
        self._retired = False
        self._library: Any = None  # aiohttp
        self._limits: aiohttp.ClientTimeout

    async def open(self) -> None:
        """Make ready what requests need. RemoteError where the key or the certificates cannot be used."""
        async with self._opening:
            if self._session is None:
                self._library = await asyncio.to_thread(importlib.import_module, "aiohttp")
                tls = await asyncio.to_thread(self._certificates)
                self._session = self._make(tls)
            if self._headers is None:
                self._headers = await asyncio.to_thread(self._read_key)

    @property
    def ready(self) -> bool:
        return self._session is not None and self._headers is not None

    async def close(self) -> None:
        """Now: what is under way is cut."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def retire(self) -> None:
        """It is not configured any more: close it when its last request has ended."""
        self._retired = True
        if not self._under_way:
            await self.close()

    def _certificates(self) -> ssl.SSLContext | bool:
        if not self.remote.url.startswith("https:"):
            return True
        try:
            return ssl.create_default_context(cafile=self.remote.ca_file)
        except (OSError, ssl.SSLError) as error:
            text = f"cannot use {self.remote.ca_file}: {error}"
            raise self.trouble("its ca_file cannot be used", text) from None

    def _make(self, tls: ssl.SSLContext | bool) -> aiohttp.ClientSession:
        library, remote = self._library, self.remote
        self._limits = library.ClientTimeout(total=None, sock_connect=remote.connect_timeout)
        trace = library.TraceConfig()
        trace.on_connection_reuseconn.append(_reused)
        session: aiohttp.ClientSession = library.ClientSession(
            connector=library.TCPConnector(limit=0, ssl=tls),
            cookie_jar=library.DummyCookieJar(),
            trace_configs=[trace],
            timeout=self._limits,
            skip_auto_headers=("User-Agent", "Accept", "Content-Type"),
        )
        return session

    def _read_key(self) -> dict[str, str]:
        """The headers of every request. RemoteError. Blocking."""
        remote = self.remote
        headers = {"User-Agent": "accelerd", "Accept-Encoding": "identity"}
        self._key, why = key_of(remote, self._environ)
        if why:
            raise self.trouble("its key cannot be read", why)
        if remote.api == "anthropic":
            headers["anthropic-version"] = ANTHROPIC_VERSION
        if self._key:
            bearer = "" if remote.api == "anthropic" else "Bearer "
            headers[remote.key_header] = bearer + self._key
        own = {name.lower() for name, _ in remote.headers}
        return {name: value for name, value in headers.items() if name.lower() not in own} | dict(remote.headers)

    def trouble(self, problem: str, detail: str = "") -> RemoteError:
        """The error, which is logged once as long as it stays the same."""
        if problem != self._told:
            self._told = problem
            log.warning("the remote %s: %s", self.remote.name, f"{problem}: {detail}" if detail else problem)
        return RemoteError(self.remote, problem, detail)

    def refused(self, status: int) -> RemoteError:
        """It does not take the key, which is read again before the next request."""
        self._headers = None
        with_key = "accelerd's key" if self._key else "requests without a key: set key_file"
        return self.trouble(f"it refuses {with_key} (status {status})")

    def answers(self) -> None:
        """It works again: a trouble that comes back is logged anew."""
        self._told = ""

    def discreet(self, text: bytes) -> bytes:
        """What it says, without its address and its key."""
        for secret in (self._key, *(value for _, value in self.remote.headers)):
            if len(secret) > 3:
                text = text.replace(secret.encode(), b"***")
        authority = self.remote.url.partition("://")[2].partition("/")[0]
        for address in (authority, authority.rpartition(":")[0]):
            if address:
                text = text.replace(address.encode(), self.remote.name.encode())
        return text

    @asynccontextmanager
    async def request(
        self, url: str, *, body: bytes | None = None, kind: str = "application/json"
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer's head has come. RemoteError, also for what happens to the body inside.

        What was sent to a connection that the remote had closed meanwhile is sent again over another one.
        """
        while not self.ready:  # another request may have found meanwhile that the key is refused
            await self.open()
        assert self._headers is not None
        headers = self._headers if body is None else {**self._headers, "Content-Type": kind}
        response: aiohttp.ClientResponse | None = None
        self._under_way += 1
        try:
            response = await self._send(url, headers, body)
            yield response
        except (self._library.ClientError, OSError) as error:  # TimeoutError is an OSError
            raise RemoteError(self.remote, self._words(error)) from None
        finally:
            self._under_way -= 1
            if response is not None:
                response.close()
            if self._retired and not self._under_way:
                await self.close()

    async def _send(self, url: str, headers: Mapping[str, str], body: bytes | None) -> aiohttp.ClientResponse:
        assert self._session is not None
        while True:
            reused: list[bool] = []
            try:
                async with asyncio.timeout(self.remote.first_byte_timeout):
                    return await self._session.request(
                        "GET" if body is None else "POST",
                        url,
                        data=body,
                        headers=headers,
                        allow_redirects=False,
                        proxy=self.remote.proxy,
                        trace_request_ctx=reused,
                    )
            except (self._library.ServerDisconnectedError, self._library.ClientOSError, ConnectionResetError):
                if not reused:
                    raise

    async def ask(self, path: str, body: bytes | None = None, *, within: float) -> Any:
        """The JSON answer to a question of our own. RemoteError."""
        url = self.remote.address(path)
        try:
            async with asyncio.timeout(within):
                async with self.request(url, body=body) as response:
                    if response.status in REFUSED:
                        raise self.refused(response.status)
                    if response.status != 200:
                        raise RemoteError(self.remote, f"status {response.status} to {path}")
                    data = await response.content.read(LARGEST)
                    while len(data) < LARGEST and (more := await response.content.read(LARGEST - len(data))):
                        data += more
        except TimeoutError:
            raise RemoteError(self.remote, f"no answer within {within:g} s") from None
        try:
            return from_json(data)
        except ValueError:
            raise RemoteError(self.remote, f"its answer to {path} is not JSON") from None

    def _words(self, error: BaseException) -> str:
        """What has happened, in plain words."""
        library, remote = self._library, self.remote
        certificate = getattr(error, "certificate_error", error)
        if isinstance(certificate, ssl.SSLCertVerificationError):
            return f"its certificate {CERTIFICATES.get(certificate.verify_code, 'is not valid')}"
        if isinstance(error, library.ClientProxyConnectionError):
            return "its proxy cannot be reached"
        if isinstance(error, library.ClientHttpProxyError):
            return f"its proxy answers with status {error.status}"
        if isinstance(error, library.ClientConnectorDNSError):
            return "its name cannot be resolved"
        if isinstance(error, library.ClientConnectorSSLError | ssl.SSLError):
            return "TLS fails with it: does it speak https, and which versions?"
        if isinstance(error, library.ServerTimeoutError):
            return f"it cannot be reached within {remote.connect_timeout:g} s (connect_timeout)"
        if isinstance(error, TimeoutError):
            return f"it has not begun to answer within {remote.first_byte_timeout:g} s (first_byte_timeout)"
        if isinstance(error, library.ServerDisconnectedError):
            return "it closed the connection without an answer"
        if isinstance(error, library.ClientPayloadError):
            return "the connection ended in the middle of the answer"
        if isinstance(error, library.ClientResponseError):
            return "its answer is not valid HTTP"
        if isinstance(error, library.ClientConnectorError) and (error.errno or 0) <= 0:
            tls = remote.url.startswith("https:")
            return "it closed the connection at once" + (": does it speak https?" if tls else "")
        if isinstance(error, OSError) and error.errno:
            return f"it cannot be reached: {os.strerror(error.errno)}"
        return f"the exchange with it failed ({type(error).__name__})"


def key_of(remote: Remote, environ: Mapping[str, str]) -> tuple[str, str]:
    """Its key, or "" and why it cannot be used; both empty: it has none. Blocking."""
    if remote.credential is not None:
        return key_file.of_credential(remote.credential, environ)
    return key_file.to_send(remote.key_file) if remote.key_file is not None else ("", "")


async def _reused(session: object, context: Any, params: object) -> None:
    """aiohttp says that a request goes over a connection that was used before."""
    if isinstance(context.trace_request_ctx, list):
        context.trace_request_ctx.append(True)
