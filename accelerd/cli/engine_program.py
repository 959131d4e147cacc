"""The llama-server that would run a model, as the daemon has it: its PATH and its variables count, not this shell's.

Without a daemon it is asked from here. Loads nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from accelerd.base.errors import AccelError
from accelerd.cli.connect import DaemonClient
from accelerd.cli.failure import Failure

if TYPE_CHECKING:
    from accelerd.config.model import LlamaServerSettings, ModelSpec
    from accelerd.engines.base import EngineBuild


def program_of(
    spec: ModelSpec,
    client: DaemonClient,
    settings: LlamaServerSettings,
    env: Mapping[str, str],
    cache: Path,
    *,
    configured: bool,
) -> EngineBuild:
    """AccelError. `configured`: the daemon may know the model by its name; `cache`: accelerd's."""
    from accelerd.engines.base import EngineBuild
    from accelerd.engines.llama_server.engine import LlamaServer

    try:
        told = client.get("build", model=spec.name if configured else None)
        return EngineBuild(
            told["engine"], told["version"], told["backend"], frozenset(told["options"]), program=told["program"]
        )
    except Failure as failure:
        if failure.code == "model_failed":
            raise AccelError("model_failed", failure.message, hint=failure.hint) from None
    search = (cache / "llama-server" / "current" / "bin",)
    engine = LlamaServer(settings, environ=env, cache=cache / "features", search=search)
    return asyncio.run(engine.build(replace(spec, path=None)))
