"""Runs the real llama-server from an engine's plan, and a small HTTP client for its unix socket or port.

Only for the tests of the engine: nothing of supervise or the gateway is used here.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerd.config.model import LlamaServerSettings, ModelSpec
from accelerd.engines.base import Endpoint, LaunchPlan
from accelerd.engines.llama_server import LlamaServer

VARIABLE = "ACCELERD_TEST_LLAMA_SERVER"


def real_binary() -> str:
    binary = os.environ.get(VARIABLE, "")
    if not os.access(binary, os.X_OK):
        raise AssertionError(f"${VARIABLE} must name an executable llama-server for these tests, it is {binary!r}")
    return binary


def real_engine(cache: Path, transport: str = "auto", **environ: str) -> LlamaServer:
    settings = LlamaServerSettings(binary=real_binary(), transport=transport)
    return LlamaServer(settings, environ={**os.environ, **environ}, cache=cache)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One HTTP/1.1 connection, kept open between requests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, endpoint: Endpoint) -> Connection:
        if endpoint.unix:
            return cls(*await asyncio.open_unix_connection(endpoint.unix))
        return cls(*await asyncio.open_connection("127.0.0.1", endpoint.port))

    async def send(self, method: str, path: str, secret: str | None, body: Any = None) -> None:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
        if data:
            head += "Content-Type: application/json\r\n"
        if secret is not None:
            head += f"Authorization: Bearer {secret}\r\n"
        self.writer.write(head.encode() + b"\r\n" + data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
        return int(lines[0].split()[1]), headers

    async def chunks(self) -> AsyncIterator[bytes]:
        """The chunks of a streamed body, up to its terminator."""
        while size := int(await self.reader.readline(), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readline()

    async def request(self, method: str, path: str, secret: str | None, body: Any = None) -> Reply:
        await self.send(method, path, secret, body)
        status, headers = await self.head()
        if headers.get("transfer-encoding") == "chunked":
            data = b"".join([chunk async for chunk in self.chunks()])
        else:
            data = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Reply(status, headers, data)

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


@dataclass
class Server:
    """A running llama-server and all that it printed."""

    plan: LaunchPlan
    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)
    printed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def ask(self, method: str, path: str, body: Any = None, secret: str | None = "") -> Reply:
        """One request on a connection of its own; `secret`: "" is the plan's, None is none."""
        connection = await Connection.open(self.plan.endpoint)
        try:
            return await connection.request(method, path, self.plan.secret if secret == "" else secret, body)
        finally:
            await connection.close()

    async def ready(self) -> None:
        """Ready as the plan defines it; raises with the output when the server ends before."""
        while True:
            if self.process.returncode is not None:
                raise AssertionError("llama-server ended: " + "\n".join(self.lines[-20:]))
            try:
                if (await self.ask("GET", self.plan.warm_path)).status == 200:
                    return
            except (FileNotFoundError, ConnectionError):
                await asyncio.sleep(0.005)  # not listening yet
            await asyncio.sleep(0.005)

    async def saw(self, text: str, within: float) -> float:
        """Seconds until a line with `text` was printed; raises TimeoutError."""
        start = time.monotonic()
        async with asyncio.timeout(within), self.printed:
            await self.printed.wait_for(lambda: any(text in line for line in self.lines))
        return time.monotonic() - start

    async def read(self) -> None:
        assert self.process.stderr
        async for line in self.process.stderr:
            async with self.printed:
                self.lines.append(line.decode("utf-8", "replace").rstrip())
                self.printed.notify_all()


@asynccontextmanager
async def running(engine: LlamaServer, spec: ModelSpec, runtime: Path, *, wait: bool = True) -> AsyncIterator[Server]:
    """The server of a model while the block runs; every process and its socket are gone afterwards."""
    plan = await engine.plan(spec, runtime)
    process = await asyncio.create_subprocess_exec(
        *plan.argv, env=plan.env, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    server = Server(plan, process)
    async with asyncio.TaskGroup() as group:
        group.create_task(server.read())
        try:
            if wait:
                async with asyncio.timeout(30):
                    await server.ready()
            yield server
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            if plan.endpoint.unix:
                await asyncio.to_thread(Path(plan.endpoint.unix).unlink, missing_ok=True)
