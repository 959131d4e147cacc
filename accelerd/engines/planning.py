"""Plans in bounded time, also for a model on a volume that does not answer: which paths it is started from, and whether
their volumes answer. Reads nothing itself.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from accelerd.base import volumes
from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.base.model_source import Source
from accelerd.base.ports import Roots
from accelerd.config.model import ModelSpec
from accelerd.config.named_files import named_files
from accelerd.downloads import cache
from accelerd.engines.base import Engine, LaunchPlan, fail
from accelerd.memory.model import MemoryRequirement

LAST_LOOK: Final = 1.0  # s that its volumes have to answer when a plan has taken too long


def paths_of(spec: ModelSpec, environ: Mapping[str, str], home: Path) -> list[str]:
    """Files, or the folder where a hub's files lie."""
    return [*(path for _, path in named_files(spec)), *_downloaded(spec, environ, home)]


def _downloaded(spec: ModelSpec, environ: Mapping[str, str], home: Path) -> Iterator[str]:
    if spec.model and not spec.path and not spec.elsewhere:
        with suppress(AccelError):  # the start says what is wrong
            source = Source.parse(spec.model)
            yield os.fspath(cache.place_of(source.url, environ, home) if source.url else cache.hub_cache(environ, home))


async def answer(spec: ModelSpec, home: Path, within: float) -> None:
    """AccelError('model_failed'), which names the volume, if one has not answered for so many seconds."""
    try:
        await volumes.answer(paths_of(spec, os.environ, home), within)
    except volumes.NoAnswer as error:
        fail(Cause.LOAD_TIMEOUT, f"cannot read the files of {spec.name}: {error.strerror}")


async def plan(engine: Engine, spec: ModelSpec, roots: Roots, placed: MemoryRequirement | None) -> LaunchPlan:
    """The engine's plan for a start, within the model's start_timeout. AccelError('model_failed')."""
    try:
        async with asyncio.timeout(spec.start_timeout):
            await answer(spec, roots.home, spec.start_timeout)
            return await engine.plan(spec, roots.runtime, placed)
    except TimeoutError:
        await answer(spec, roots.home, LAST_LOOK)
        text = f"cannot tell how to start {spec.name} within {spec.start_timeout:g} s (start_timeout)"
        fail(Cause.LOAD_TIMEOUT, f"{text}: its program or its files do not answer")
