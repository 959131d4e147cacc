"""Keeps what llama-fit-params said, in memory and in one file, the latest few hundred answers. Only a convenience:
what cannot be read or written is logged, and asked for again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from accelerd.engines.llama_server.fit_command import FitAnswer

log = logging.getLogger(__name__)

FORMAT: Final = 1
LIMIT: Final = 512  # answers; some 200 bytes each
MAX_SIZE: Final = 1 << 20  # bytes of the file that are read


class _File(msgspec.Struct):
    format: int
    answers: dict[str, FitAnswer]


class FitCache:
    """Answers by key, the one used last at the end. `file`: None keeps nothing on disk."""

    def __init__(self, file: Path | None, limit: int = LIMIT) -> None:
        self._file = file
        self._limit = limit
        self._answers: dict[str, FitAnswer] | None = None
        self._lock = asyncio.Lock()

    async def find(self, key: str) -> FitAnswer | None:
        answers = await self._known()
        answer = answers.pop(key, None)
        if answer is not None:
            answers[key] = answer
        return answer

    async def keep(self, key: str, answer: FitAnswer) -> None:
        """On disk only what is known: a tool that could not say it may be mended or replaced."""
        answers = await self._known()
        answers[key] = answer
        while len(answers) > self._limit:
            del answers[next(iter(answers))]
        if self._file is not None and answer.rows:
            async with self._lock:
                data = msgspec.json.encode(_File(FORMAT, {k: a for k, a in answers.items() if a.rows}))
                await asyncio.to_thread(_save, self._file, data)

    async def _known(self) -> dict[str, FitAnswer]:
        async with self._lock:
            if self._answers is None:
                self._answers = {} if self._file is None else await asyncio.to_thread(_load, self._file)
            return self._answers


def _load(file: Path) -> dict[str, FitAnswer]:
    try:
        with file.open("rb") as f:
            found = msgspec.json.decode(f.read(MAX_SIZE), type=_File)
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as e:
        log.warning("cannot use the cache %s, it is made anew: %s", file, e)
        return {}
    return found.answers if found.format == FORMAT else {}


def _save(file: Path, data: bytes) -> None:
    """Old or new, never half."""
    temporary = None
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as f:
            temporary = f.name
            f.write(data)
        os.replace(temporary, file)
    except OSError as e:
        log.warning("cannot keep the cache %s: %s", file, e)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
