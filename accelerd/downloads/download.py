"""A download from the daemon's or accelctl's side: starts the process that does it, follows its progress, ends it.

Imports nothing of huggingface-hub, so that the daemon stays small. The process keeps what has arrived: a download that
was ended goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from accelerd.base.errors import KINDS, AccelError
from accelerd.base.model_source import Source
from accelerd.base.ports import Clock, SystemClock
from accelerd.downloads.cache import Files
from accelerd.estimate.estimate import EstimateSettings
from accelerd.estimate.model_kind import Identified

log = logging.getLogger(__name__)

SMOOTHING: Final = 5.0  # s; over so long the speed is an average
GRACE: Final = 5.0  # s from SIGTERM to SIGKILL
KEPT_OUTPUT: Final = 2000  # bytes of what the process says on its standard error
LONGEST_LINE: Final = 1 << 20
COMMAND: Final = (sys.executable, "-P", "-m", "accelerd.downloads")  # -P: not what lies in the working directory


class DownloadRequest(Struct, frozen=True):
    """What the process reads from its standard input. The token comes by the environment or a file, never here."""

    source: Source
    home: Path
    room: int | None = None  # bytes of memory that the model may take
    settings: EstimateSettings | None = None  # what it will be run with
    attempts: int = 8  # failures in a row, without a byte between them, after which it gives up
    pause: float = 1.0  # s before the second attempt; each further one waits twice as long


class Planned(Struct, frozen=True, tag="planned"):
    """What will be fetched, before the first byte."""

    source: str  # with the quantization that was chosen
    reason: str
    total: int
    memory: int  # bytes the model will take, estimated; 0: not known
    found: Identified | None


class Arrived(Struct, frozen=True, tag="arrived"):
    bytes: int  # of all files, with those of earlier attempts
    total: int
    file: str
    new: int  # bytes that this process has fetched


class DownloadDone(Struct, frozen=True, tag="done"):
    """Everything is here. `source`: as it should stand in the configuration."""

    source: str
    files: Files
    found: Identified
    reason: str = ""


class DownloadFailed(Struct, frozen=True, tag="failed"):
    code: str
    problem: str
    hint: str = ""
    candidates: tuple[str, ...] = ()  # files of which one must be named


Message = Planned | Arrived | DownloadDone | DownloadFailed


class DownloadProgress(Struct, frozen=True):
    """How far a download is."""

    bytes: int = 0
    total: int = 0  # 0: not known yet
    rate: float = 0.0  # bytes a second, smoothed
    remaining: float | None = None  # s
    file: str = ""
    reason: str = ""  # why these files

    @property
    def share(self) -> float:
        """0 … 1."""
        return min(1.0, self.bytes / self.total) if self.total else 0.0


def _from_text(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(kind)


ENCODER: Final = msgspec.json.Encoder(enc_hook=str)
MESSAGES: Final = msgspec.json.Decoder(Message, dec_hook=_from_text)
REQUESTS: Final = msgspec.json.Decoder(DownloadRequest, dec_hook=_from_text)


class Download:
    """One download. Run it once."""

    def __init__(
        self,
        request: DownloadRequest,
        env: Mapping[str, str],
        on_progress: Callable[[DownloadProgress], None] | None = None,
        *,
        clock: Clock | None = None,
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        """`env`: of the process. `on_progress` hears every change."""
        self.request = request
        self.progress = DownloadProgress()
        self.planned: Planned | None = None
        self._env = dict(env)
        self._on_progress = on_progress
        self._speed = _Speed(clock or SystemClock())
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._canceled = False

    async def run(self) -> DownloadDone:
        """Until everything is here. AccelError says why not; a canceled task ends the process, too."""
        if self._canceled:
            raise _canceled(self.request.source)
        pipe = asyncio.subprocess.PIPE
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command, stdin=pipe, stdout=pipe, stderr=pipe, env=self._env, limit=LONGEST_LINE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        errors = asyncio.ensure_future(_tail(process.stderr))
        try:
            process.stdin.write(ENCODER.encode(self.request) + b"\n")
            with contextlib.suppress(ConnectionError):
                await process.stdin.drain()
            process.stdin.close()
            result = await self._follow(process.stdout)
            await process.wait()
            tail = await errors
        finally:
            await _end(process)
            errors.cancel()
        if self._canceled:
            raise _canceled(self.request.source)
        if isinstance(result, DownloadDone):
            return result
        if result is None:
            log.warning("the download of %s ended with %s: %s", self.request.source.public, process.returncode, tail)
            raise AccelError(
                "download_failed",
                f"the download of {self.request.source.public} ended before it was complete",
                hint="try again: it goes on where it stopped",
            )
        code = result.code if result.code in KINDS else "download_failed"
        error = AccelError(code, result.problem, hint=result.hint)
        if result.candidates:
            error.fields["candidates"] = list(result.candidates)
        raise error

    def cancel(self) -> None:
        """End it; `run` fails with `canceled`. What has arrived is kept."""
        self._canceled = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    async def _follow(self, output: asyncio.StreamReader) -> DownloadDone | DownloadFailed | None:
        """What the process says last; None: it ended without a result."""
        result: DownloadDone | DownloadFailed | None = None
        while line := await output.readline():
            try:
                message = MESSAGES.decode(line)
            except msgspec.MsgspecError:
                continue  # a library wrote there
            if isinstance(message, Planned):
                self.planned = message
                self._tell(DownloadProgress(total=message.total, reason=message.reason))
            elif isinstance(message, Arrived):
                rate = self._speed.of(message.new)
                left = max(0, message.total - message.bytes)
                remaining = left / rate if rate > 0 else None
                reason = self.progress.reason
                self._tell(DownloadProgress(message.bytes, message.total, rate, remaining, message.file, reason))
            else:
                result = message
        return result

    def _tell(self, progress: DownloadProgress) -> None:
        self.progress = progress
        if self._on_progress is not None:
            self._on_progress(progress)


class _Speed:
    """Bytes a second, an average that forgets what is longer ago."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: tuple[float, int] | None = None
        self._rate: float | None = None

    def of(self, count: int) -> float:
        """With so many bytes since the start."""
        now = self._clock.monotonic()
        if self._last is None:
            self._last = now, count
            return 0.0
        passed, new = now - self._last[0], count - self._last[1]
        if passed > 0:
            self._last = now, count
            weight = math.exp(-passed / SMOOTHING) if self._rate is not None else 0.0
            self._rate = weight * (self._rate or 0.0) + (1 - weight) * new / passed
        return self._rate or 0.0


async def _tail(stream: asyncio.StreamReader) -> str:
    kept = b""
    while piece := await stream.read(1 << 16):
        kept = (kept + piece)[-KEPT_OUTPUT:]
    return kept.decode("utf-8", "replace").strip()


async def _end(process: asyncio.subprocess.Process) -> None:
    """No process is left."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), GRACE)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _canceled(source: Source) -> AccelError:
    return AccelError("canceled", f"the download of {source.public} was canceled", hint="what has arrived is kept")
