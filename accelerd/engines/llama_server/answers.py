"""Keeps what programs said, in memory and in one file, the latest few. Only a convenience: what cannot be read or
written is logged, and asked for again.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from accelerd.base.decoding import from_json
from accelerd.system.private_files import AtomicFile, Unreadable

log = logging.getLogger(__name__)

T = TypeVar("T")


class AnswerCache(Generic[T]):
    """Answers by key, the one used last at the end. `file`: None keeps nothing on disk."""

    def __init__(self, file: Path | None, kind: type[T], limit: int) -> None:
        self._file = AtomicFile(file) if file else None
        self._kind = kind
        self._limit = limit
        self._answers: dict[str, T] | None = None
        self._passing: set[str] = set()  # not for the disk
        self._lock = asyncio.Lock()

    async def find(self, key: str) -> T | None:
        answers = await self._known()
        answer = answers.pop(key, None)
        if answer is not None:
            answers[key] = answer
        return answer

    async def keep(self, key: str, answer: T, *, lasting: bool) -> None:
        """`lasting`: it holds for the next daemon too."""
        answers = await self._known()
        answers[key] = answer
        while len(answers) > self._limit:
            del answers[next(iter(answers))]
        if not lasting:
            self._passing.add(key)
        elif self._file is not None:
            async with self._lock:
                data = msgspec.json.encode({k: a for k, a in answers.items() if k not in self._passing})
                await asyncio.to_thread(self._save, data)

    async def _known(self) -> dict[str, T]:
        async with self._lock:
            if self._answers is None:
                self._answers = await asyncio.to_thread(self._load)
            return self._answers

    def _load(self) -> dict[str, T]:
        try:
            data = self._file.read() if self._file else None
            return from_json(data, dict[str, self._kind]) if data else {}  # type: ignore[name-defined]
        except (OSError, Unreadable, msgspec.DecodeError) as e:
            log.warning("cannot use the cache %s, it is made anew: %s", self._file and self._file.path, e)
            return {}

    def _save(self, data: bytes) -> None:
        assert self._file is not None
        try:
            self._file.write(data)
        except OSError as e:
            log.warning("cannot keep the cache %s: %s", self._file.path, e)
