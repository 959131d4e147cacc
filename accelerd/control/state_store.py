"""What accelerd remembers between runs, and can do without: how long models took to load, what they were measured to
need, and which toolboxes a person has pinned.

Kept in memory; read once at start, written by a worker thread a little after a change. A disk that is full, read-only
or gone makes the store `degraded`, never the daemon. Nothing that decides correctness may be kept here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec

from accelerd.base import names
from accelerd.base.decoding import from_json
from accelerd.memory.learned import LearnedRecord
from accelerd.system.private_files import AtomicFile, Unreadable
from accelerd.system.records import event

log = logging.getLogger(__name__)

VERSION: Final = 1
MODELS_KEPT: Final = 1000
DEBOUNCE: Final = 2.0  # seconds from the first change to the write
RETRY_FIRST: Final = 5.0
RETRY_CAP: Final = 300.0

Seconds = Annotated[float, msgspec.Meta(ge=0)]


class RememberedModel(msgspec.Struct, omit_defaults=True):
    """What was seen of one model fingerprint."""

    load_seconds: Seconds | None = None


class _Header(msgspec.Struct):
    version: int


class _Content(msgspec.Struct):
    version: int = VERSION
    models: dict[str, RememberedModel] = {}
    pins: dict[str, str] = {}  # image ids by toolbox
    learned: tuple[LearnedRecord, ...] = ()  # what models were measured to need; absent in older files


class StateStore:
    """The state of one daemon. All methods are for the event loop's thread; only the file work leaves it."""

    def __init__(
        self,
        path: Path,
        *,
        file: AtomicFile | None = None,
        debounce: float = DEBOUNCE,
        retry_first: float = RETRY_FIRST,
        retry_cap: float = RETRY_CAP,
    ) -> None:
        self.path = path
        self._file = AtomicFile(path) if file is None else file
        self._debounce = debounce
        self._retry_first = retry_first
        self._retry_cap = retry_cap
        self._content = _Content()
        self._persist = True
        self._dirty = False
        self._closing = False
        self._delay = retry_first
        self._timer: asyncio.TimerHandle | None = None
        self._writer: asyncio.Task[None] | None = None
        self.degraded: str | None = None  # why nothing can be remembered right now, for status

    def read(self) -> None:
        """Read the file, blocking; call once before serving. Never raises: whatever is wrong, the store is usable."""
        try:
            data = self._file.read()
            if data is not None:
                self._content = self._parse(data)
        except Unreadable as error:
            self._start_empty(str(error))
        except OSError as error:
            self.degraded = f"cannot read {self.path}: {error.strerror or error}"
            event(log, logging.WARNING, f"{self.degraded}; starting without it", message_id=names.MSG_STATE_FILE)

    def load_seconds(self, key: str) -> float | None:
        """Seconds that the last load of this model fingerprint took."""
        record = self._content.models.get(key)
        return record.load_seconds if record else None

    def remember_load(self, key: str, seconds: float) -> None:
        """A load took `seconds`."""
        models, new = self._content.models, RememberedModel(round(max(0.0, seconds), 3))
        old = models.pop(key, None)  # and to the end: the oldest falls out first
        models[key] = new
        if new == old:
            return
        while len(models) > MODELS_KEPT:
            del models[next(iter(models))]
        self._changed()

    @property
    def learned(self) -> Sequence[LearnedRecord]:
        """What models were measured to need, as it was told last."""
        return self._content.learned

    def learn(self, entries: Sequence[LearnedRecord]) -> None:
        """These are all there are now."""
        if self._content.learned != tuple(entries):
            self._content.learned = tuple(entries)
            self._changed()

    @property
    def pins(self) -> Mapping[str, str]:
        """The ids of images that toolboxes are pinned to, by toolbox."""
        return self._content.pins

    def pin(self, toolbox: str, image: str | None) -> None:
        """Pin it to an image id; None: pin it no more."""
        pins = self._content.pins
        if pins.get(toolbox) != image:
            if image is None:
                del pins[toolbox]
            else:
                pins[toolbox] = image
            self._changed()

    async def flush(self) -> None:
        """Write now what is not yet written; one attempt."""
        self._cancel_timer()
        while self._writer is not None:
            await asyncio.shield(self._writer)
        self._cancel_timer()
        if self._dirty and self._persist:
            await self._write()

    async def close(self) -> None:
        """One last attempt to write; no timer and no task is left."""
        self._closing = True
        await self.flush()
        self._cancel_timer()

    # --- inside ---

    def _changed(self) -> None:
        self._dirty = True
        if self._timer is None and self._writer is None:
            self._schedule(self._debounce)

    def _parse(self, data: bytes) -> _Content:
        try:
            version = from_json(data, _Header).version
            if version > VERSION:
                self._persist = False
                self.degraded = (
                    f"{self.path} was written by a newer accelerd (version {version}): it is left alone and nothing "
                    "is remembered in this run"
                )
                event(log, logging.WARNING, self.degraded, message_id=names.MSG_STATE_FILE)
                return _Content()
            if version < 1:
                raise Unreadable(f"version {version} was never written")
            return from_json(data, _Content)
        except msgspec.DecodeError as error:
            raise Unreadable(str(error)) from error

    def _start_empty(self, why: str) -> None:
        try:
            kept = self._file.set_aside()
            text = f"cannot use the state file {self.path}: {why}; starting empty, the old one is kept as {kept}"
        except OSError as error:
            # The next write replaces it, by rename: a link or FIFO is replaced itself, never followed.
            text = f"cannot use the state file {self.path}: {why}; starting empty ({error.strerror or error})"
        event(log, logging.WARNING, text, message_id=names.MSG_STATE_FILE)

    def _schedule(self, delay: float) -> None:
        if self._persist and not self._closing:
            self._timer = asyncio.get_running_loop().call_later(delay, self._start_writer)

    def _start_writer(self) -> None:
        self._timer = None
        self._writer = asyncio.get_running_loop().create_task(self._run_writer(), name="state-writer")

    async def _run_writer(self) -> None:
        try:
            delay = self._debounce if await self._write() else self._delay
        except Exception:  # a bug must not end what works without this file
            event(log, logging.ERROR, "cannot write the state", message_id=names.MSG_BUG, exc_info=True)
            return
        finally:
            self._writer = None
        if self._dirty:
            self._schedule(delay)

    async def _write(self) -> bool:
        """One attempt; on failure the state stays dirty, the next delay is doubled and `degraded` says why."""
        data = msgspec.json.format(msgspec.json.encode(self._content), indent=1) + b"\n"
        self._dirty = False
        try:
            await asyncio.to_thread(self._file.write, data)
        except OSError as error:
            self._dirty = True
            self._delay = self._retry_first if self.degraded is None else min(self._delay * 2, self._retry_cap)
            text = f"cannot write {self.path}: {error.strerror or error}; what was measured is not remembered"
            if text != self.degraded:
                event(log, logging.WARNING, f"{text}; trying again later", message_id=names.MSG_STATE_FILE)
            self.degraded = text
            return False
        if self.degraded is not None:
            self.degraded = None
            event(log, logging.INFO, f"{self.path} is written again", message_id=names.MSG_STATE_FILE)
        return True

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
