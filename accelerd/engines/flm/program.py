"""Runs `flm` to query its validation of this machine, its models and its version.

Only short commands with a time limit; answers are cached for some seconds. Starts no server, downloads no model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from accelerd.base.decoding import from_json
from accelerd.base.errors import AccelError
from accelerd.engines import program as programs
from accelerd.engines.flm.catalogue import FlmModel, of_listing

PATIENCE: Final = 10.0  # s for one command
FRESH: Final = 5.0  # s that an answer is cached
HINT: Final = "install FastFlowLM 0.9.35 or newer, or set `binary` under [engines.flm] to the program's path"
# Of its own variables, only the model directory; no token, nothing that loads code.
BASIC: Final = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME", "FLM_MODEL_PATH", "XILINX_XRT",
)  # fmt: skip
QUIET: Final = {"FLM_DISABLE_UPDATE_CHECK": "1"}  # otherwise it contacts the internet at each start


def find(wanted: str, environ: Mapping[str, str]) -> str:
    """The program's path. AccelError('model_failed'). Blocking."""
    return programs.find(wanted, environ, HINT)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for flm."""
    kept = {name: environ[name] for name in BASIC if name in environ}
    kept.update({name: value for name, value in environ.items() if name.startswith("LC_")})
    return kept | QUIET


class FlmUnavailable(Exception):
    """The program gave no usable answer; the text says why."""


class FlmProgram:
    """Runs `flm` programs and caches their answers."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._said: dict[tuple[Any, ...], tuple[float, Any]] = {}

    async def validate(self, path: str, env: Mapping[str, str]) -> Mapping[str, Any]:
        """The output of `flm validate --json`, whatever its status. FlmUnavailable."""
        report = await self._asked(path, env, "validate", "--json")
        if "ready" not in report:
            raise FlmUnavailable("flm validate --json does not report whether it is ready")
        return report

    async def models(self, path: str, env: Mapping[str, str]) -> dict[str, FlmModel]:
        """Its models by tag, and which of them are installed. FlmUnavailable."""
        listed = (await self._asked(path, env, "list", "--json")).get("models")
        found = [of_listing(one) for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        if not any(found):
            raise FlmUnavailable("flm list --json lists no models")
        return {one.tag: one for one in found if one is not None}

    async def version(self, path: str, env: Mapping[str, str]) -> str:
        """ "0.9.45". FlmUnavailable."""
        return str((await self._asked(path, env, "version", "--json")).get("version", ""))

    def forget(self) -> None:
        """Clears the cache, for example after a download."""
        self._said.clear()

    async def _asked(self, path: str, env: Mapping[str, str], *arguments: str) -> dict[str, Any]:
        key = (path, arguments, tuple(sorted(env.items())))
        at, answer = self._said.get(key, (0.0, None))
        if answer is None or self._now() - at >= FRESH:
            answer = await self._run(path, env, *arguments)
            self._said[key] = (self._now(), answer)
        return dict(answer)

    async def _run(self, path: str, env: Mapping[str, str], *arguments: str) -> dict[str, Any]:
        try:
            answer = await programs.run(env, PATIENCE, path, *arguments)
        except AccelError as error:
            raise FlmUnavailable(error.message) from None
        start = answer.out.find("{")  # other lines may come before it
        try:
            found = from_json(answer.out[start:]) if start >= 0 else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            words = " ".join(("flm", *arguments))
            raise FlmUnavailable(f"{words} printed no JSON: is this FastFlowLM 0.9.35 or newer?")
        return found
