"""Requests to remotes, in the shape of connections to engines: what a remote answers reaches a ResponseReceiver.

A connection here is one exchange; aiohttp keeps the real ones. Nothing of the client's headers reaches a remote, and of
the remote's only what a Head has. Its errors are passed on without its address and its key; that it refuses the key is
the operator's trouble and no answer.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from accelerd.base.errors import AccelError
from accelerd.engines.http import REFUSED, HttpError
from accelerd.engines.remote.client import RemoteClient, RemoteError
from accelerd.engines.remote.remotes import Remotes
from accelerd.gateway.response_framing import LAST_CHUNK, FramingError, Head, chunk, seconds_of
from accelerd.gateway.upstream import ResponseReceiver

if TYPE_CHECKING:
    import aiohttp  # loaded with the first request: it is large

log = logging.getLogger(__name__)

ERROR_BYTES: Final = 256 << 10  # of an error that is passed on
ANSWERS: Final = frozenset((200, 201, 202, 203))  # statuses with a body
PAGES: Final = ("text/html", "application/xhtml+xml")  # of a login, or of a wrong path


class RemoteConnection:
    """One exchange with a remote."""

    def __init__(self, remotes: Remotes, client: RemoteClient) -> None:
        self._remotes = remotes
        self._client = client
        self._receiver: ResponseReceiver | None = None
        self._task: asyncio.Task[None] | None = None
        self._answered = False
        self._reading = asyncio.Event()
        self._reading.set()

    def send(self, receiver: ResponseReceiver, kind: str, path: str, body: bytes) -> None:
        """Begin."""
        self._receiver = receiver
        url = self._client.remote.address(path)
        self._task = asyncio.create_task(self._run(receiver, url, kind, body), name="request to a remote")

    def abort(self, receiver: ResponseReceiver) -> None:
        if self._receiver is receiver:
            self.close()

    def fail(self, receiver: ResponseReceiver, reason: str) -> None:
        if self._receiver is receiver:
            self.close()
            receiver.lost(reason, clean=True, answered=self._answered)

    def pause(self, receiver: ResponseReceiver) -> None:
        if self._receiver is receiver:
            self._reading.clear()

    def resume(self, receiver: ResponseReceiver) -> None:
        if self._receiver is receiver:
            self._reading.set()

    def close(self) -> None:
        self._receiver = None
        if self._task is not None:
            self._task.cancel()

    async def _run(self, receiver: ResponseReceiver, url: str, kind: str, body: bytes) -> None:
        try:
            await self._exchange(receiver, url, kind, body)
        except HttpError as error:
            if isinstance(error, RemoteError) and not self._answered:
                self._remotes.answered(self._client.remote.name, error.problem)
            self._lose(receiver, str(error))
        except FramingError as error:
            self._lose(receiver, f"malformed response: {error}")
        except Exception:
            log.exception("a bug in accelerd ended a request to the remote %s", self._client.remote.name)
            self._lose(receiver, "a bug in accelerd, see its log")

    def _lose(self, receiver: ResponseReceiver, reason: str) -> None:
        # What goes to the client is framed here, so that an event can follow at any time.
        if self._receiver is receiver:
            self._receiver = None
            receiver.lost(reason, clean=True, answered=self._answered)

    async def _exchange(self, receiver: ResponseReceiver, url: str, kind: str, body: bytes) -> None:
        client = self._client
        async with client.request(url, body=body, kind=kind) as response:
            status = response.status
            if status in REFUSED:
                raise client.refused(status)
            if "Location" in response.headers and 300 <= status < 400:
                raise client.trouble(f"it answers with a redirection (status {status}): write its new address in url")
            if status not in ANSWERS and not 400 <= status < 600:
                raise client.trouble(f"it answers with status {status}, which is no answer")
            if status < 400 and response.content_type in PAGES:
                raise client.trouble(f"it answers with a page ({response.content_type}): is url right?")
            self._remotes.answered(client.remote.name)
            client.answers()
            self._answered = True
            if status >= 400:
                await self._error(receiver, response)
            else:
                await self._body(receiver, response)
        if self._receiver is receiver:
            self._receiver = None
            receiver.done()

    async def _error(self, receiver: ResponseReceiver, response: aiohttp.ClientResponse) -> None:
        parts, size = list[bytes](), 0
        while size < ERROR_BYTES and (data := await self._next(response)):
            parts.append(data)
            size += len(data)
        said = self._client.discreet(b"".join(parts)[:ERROR_BYTES])
        receiver.head(_head(response, len(said)), True)
        receiver.data(said)

    async def _body(self, receiver: ResponseReceiver, response: aiohttp.ClientResponse) -> None:
        length = None if "Content-Encoding" in response.headers else response.content_length
        contents = receiver.head(_head(response, length), False)
        framed = length is None and not contents
        while data := await self._next(response):
            if self._receiver is not receiver:
                return
            receiver.data(chunk(data) if framed else data)
        if framed:
            receiver.data(LAST_CHUNK)

    async def _next(self, response: aiohttp.ClientResponse) -> bytes:
        """What has come; nothing at the end."""
        await self._reading.wait()
        limit = self._client.remote.stall_timeout
        try:
            async with asyncio.timeout(limit):
                return await response.content.readany()
        except TimeoutError:
            text = f"it has sent nothing for {limit:g} s (stall_timeout)"
            raise RemoteError(self._client.remote, text) from None


def _head(response: aiohttp.ClientResponse, length: int | None) -> Head:
    kind = response.headers.get("Content-Type", "application/octet-stream").encode("latin-1", "replace")
    after = response.headers.get("Retry-After")
    seconds = seconds_of(after, response.headers.get("Date", "")) if after is not None else None
    return Head(response.status, kind, length, length is None, True, seconds)


class RemotePool:
    """The way to the remote of one instance. aiohttp has the connections, for all models of a remote."""

    def __init__(self, remotes: Remotes, remote: str) -> None:
        """AccelError: there is no such remote any more."""
        self._remotes = remotes
        self._name = remote
        self._client = remotes.client(remote)

    def reuse(self) -> RemoteConnection | None:
        return RemoteConnection(self._remotes, self._client) if self._client.ready else None

    async def connect(self) -> RemoteConnection:
        try:
            await self._client.open()
        except RemoteError as error:
            self._remotes.answered(self._name, error.problem)
            raise AccelError("upstream_failed", f"the engine failed: {error}") from None
        return RemoteConnection(self._remotes, self._client)

    def exchange(
        self, connection: RemoteConnection, receiver: ResponseReceiver, kind: str, path: str, secret: str, body: bytes
    ) -> None:
        self._remotes.touch(self._name)
        connection.send(receiver, kind, path, body)

    def close(self) -> None:
        """What is under way goes on."""
