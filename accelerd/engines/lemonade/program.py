"""Which Lemonade there is on this machine, and what it can do: its generation by its --help, its version by --version.

Runs these two commands and nothing else, once for each file. Starts no server.
"""

from __future__ import annotations

import logging
import os
import shutil
from asyncio import to_thread
from collections.abc import Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.engines import program as programs
from accelerd.engines.base import fail
from accelerd.engines.lemonade.client import release
from accelerd.engines.program import Program

log = logging.getLogger(__name__)

PROGRAMS: Final = ("lemond", "lemonade-server")  # the newer generation first
PATIENCE: Final = 15.0  # s
HINT: Final = "install Lemonade Server, or set `binary` under [engines.lemonade]"
# A command that --help of the older generation lists, and what newer ones take on the command line.
SERVE: Final = "serve"
CONFIG_DIR: Final = "config_dir"
NO_BROADCAST: Final = "--no-broadcast"


class LemonadeProgram(Struct, frozen=True):
    """One Lemonade on this machine."""

    path: str
    legacy: bool  # `lemonade-server serve` of before 10.1: options and variables instead of config.json
    config_dir: bool = False  # after 11.7: settings lie in a folder of their own
    no_broadcast: bool = False
    version: tuple[int, ...] = ()  # (11, 7, 0); (): unknown


_known: dict[tuple[str | int, ...], LemonadeProgram] = {}  # by a program's identity


async def find(wanted: str | None, env: Mapping[str, str]) -> LemonadeProgram:
    """The one that is wanted, else the newest kind that PATH has. AccelError('model_failed')."""
    program = await to_thread(_program, wanted, env)
    found = _known.get(program.identity)
    if found is None:
        said = await _said(program, "--help")
        found = features(program.path, said, await _said(program, "--version") if said else "")
        if said and program.lasting:  # else it is asked again
            _known[program.identity] = found
    return replace(found, path=program.path)


def _program(wanted: str | None, env: Mapping[str, str]) -> Program:
    """Blocking."""
    path = wanted or next((name for name in PROGRAMS if shutil.which(name, path=env.get("PATH"))), None)
    if path is None:
        fail(Cause.NO_PROGRAM, f"there is no Lemonade Server: neither {' nor '.join(PROGRAMS)} is on PATH", HINT)
    return programs.local(programs.find(path, env, HINT), env, PATIENCE)


def features(path: str, text: str, version: str = "") -> LemonadeProgram:
    """What this program is, by what --help and --version print. An unknown one is taken for a lemond of 10.1."""
    words = text.split()
    legacy = SERVE in words and "cache_dir" not in text
    if not text.strip():
        legacy = os.path.basename(path).startswith("lemonade-server")
    number = release(version.split()[-1]) if version.split() else ()
    return LemonadeProgram(
        path, legacy, config_dir=CONFIG_DIR in text, no_broadcast=NO_BROADCAST in text, version=number
    )


def hub_folder(env: Mapping[str, str]) -> str:
    """Where a server with this environment has its models."""
    home = env.get("HF_HOME") or f"{env.get('HOME', '')}/.cache/huggingface"
    return env.get("HF_HUB_CACHE") or f"{home}/hub"


async def _said(program: Program, option: str) -> str:
    """What it prints; "" when nothing comes."""
    try:
        said = await program.run(option)
    except AccelError as error:
        log.warning("%s", error.message)
        return ""
    return said.out + said.err
