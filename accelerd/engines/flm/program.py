"""Asking the program `flm`: what it thinks of this machine, which models it knows, which version it is.

Short commands only, each with a limit, their answers remembered for some seconds. Starts no server, fetches no model.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.engines.flm.catalogue import Known, of_listing

Which = Callable[[str, str], str | None]  # name, search path → file

PATIENCE: Final = 10.0  # s for one answer
FRESH: Final = 5.0  # s for which an answer holds
HINT: Final = "install FastFlowLM 0.9.35 or newer, or set `binary` under [engines.flm] to the program's path"
# No setting of its own but where its models lie; no token, nothing that loads code.
BASIC: Final = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME", "FLM_MODEL_PATH", "XILINX_XRT",
)  # fmt: skip
QUIET: Final = {"FLM_DISABLE_UPDATE_CHECK": "1"}  # it would ask the internet at every start


def system_which(name: str, path: str) -> str | None:
    return shutil.which(name, path=path)


def find(wanted: str, environ: Mapping[str, str], which: Which = system_which) -> str:
    """The program's path; a name is looked up on PATH. AccelError('model_failed'). Blocking."""
    if "/" not in wanted:
        found = which(wanted, environ.get("PATH", os.defpath))
        if found is None:
            raise AccelError(
                "model_failed",
                f"cannot find the program {wanted}: it is not on PATH; {HINT}",
                cause=Cause.NO_PROGRAM.value,
            )
        return os.path.abspath(found)
    path = os.path.expanduser(wanted)
    if not os.path.isabs(path) or not os.path.isfile(path) or not os.access(path, os.X_OK):
        raise AccelError(
            "model_failed",
            f"cannot run {wanted}: there is no such program; {HINT}",
            cause=Cause.NO_PROGRAM.value,
        )
    return path


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What it takes over."""
    kept = {name: environ[name] for name in BASIC if name in environ}
    kept.update({name: value for name, value in environ.items() if name.startswith("LC_")})
    return kept | QUIET


class Silent(Exception):
    """It gave no usable answer; the text says which."""


class Program:
    """Every `flm` that models use, and what it said lately."""

    def __init__(self, now: Callable[[], float], fresh: float = FRESH, patience: float = PATIENCE) -> None:
        """`now()`: monotonic seconds."""
        self._now = now
        self._fresh = fresh
        self._patience = patience
        self._said: dict[tuple[Any, ...], tuple[float, Any]] = {}

    async def validate(self, path: str, env: Mapping[str, str]) -> Mapping[str, Any]:
        """What `flm validate --json` says, whatever its status. Silent."""
        report = await self._asked(path, env, "validate", "--json")
        if "ready" not in report:
            raise Silent("flm validate --json says nothing about being ready")
        return report

    async def models(self, path: str, env: Mapping[str, str]) -> dict[str, Known]:
        """Its models by tag, and which of them are on this machine. Silent."""
        listed = (await self._asked(path, env, "list", "--json")).get("models")
        found = [of_listing(one) for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        if not any(found):
            raise Silent("flm list --json names no models")
        return {one.tag: one for one in found if one is not None}

    async def version(self, path: str, env: Mapping[str, str]) -> str:
        """ "0.9.45". Silent."""
        return str((await self._asked(path, env, "version", "--json")).get("version", ""))

    def forget(self) -> None:
        """Somebody has changed something, such as fetched a model."""
        self._said.clear()

    async def _asked(self, path: str, env: Mapping[str, str], *arguments: str) -> dict[str, Any]:
        key = (path, arguments, tuple(sorted(env.items())))
        at, answer = self._said.get(key, (0.0, None))
        if answer is None or self._now() - at >= self._fresh:
            answer = await self._run(path, env, *arguments)
            self._said[key] = (self._now(), answer)
        return dict(answer)

    async def _run(self, path: str, env: Mapping[str, str], *arguments: str) -> dict[str, Any]:
        words = " ".join(("flm", *arguments))
        null = asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(
                path, *arguments, stdin=null, stdout=asyncio.subprocess.PIPE, stderr=null, env=dict(env)
            )
        except OSError as error:
            raise Silent(f"{words} cannot be run: {error.strerror}") from None
        try:
            async with asyncio.timeout(self._patience):
                out, _ = await process.communicate()
        except TimeoutError:
            raise Silent(f"{words} did not answer in {self._patience:g} s") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return _object(out, words)


def _object(out: bytes, words: str) -> dict[str, Any]:
    """The JSON object in what was printed: other lines may stand before it."""
    text = out.decode(errors="replace")
    start = text.find("{")
    try:
        found = json.loads(text[start:]) if start >= 0 else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Silent(f"{words} printed no JSON: is this FastFlowLM 0.9.35 or newer?")
    return found
