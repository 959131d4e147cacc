"""Which Lemonade there is and how it is started: both generations, told apart by their --help.

Owns the private folders of the server that accelerd runs. The user's own (~/.cache/lemonade, ~/.config/lemonade) are
read for the names of the user's models and never written: a server that is given --port writes it into its folder.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from accelerd.base.decoding import from_json
from accelerd.base.errors import AccelError
from accelerd.base.ports import Roots
from accelerd.engines.program import run
from accelerd.supervise.homes.home import NoProgram, find_program
from accelerd.system.private_files import AtomicFile

log = logging.getLogger(__name__)

PROGRAMS: Final = ("lemond", "lemonade-server")  # the newer generation first
HELP_PATIENCE: Final = 15.0  # s
KEY_VARIABLE: Final = "LEMONADE_API_KEY"
HOST: Final = "127.0.0.1"
USER_MODELS: Final = "user_models.json"
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


class Folders(Struct, frozen=True):
    """What the server of accelerd owns."""

    cache: Path
    config: Path
    runtime: Path

    @classmethod
    def of(cls, roots: Roots) -> Folders:
        return cls(roots.cache / "lemonade", roots.state / "lemonade", roots.runtime / "lemonade")


async def find(wanted: str | None, env: Mapping[str, str]) -> LemonadeProgram:
    """The one that is wanted, else the newest kind that PATH has. NoProgram."""
    names = (wanted,) if wanted else PROGRAMS
    trouble: NoProgram | None = None
    for name in names:
        try:
            path = await asyncio.to_thread(find_program, name, env.get("PATH"))
        except NoProgram as error:
            trouble = trouble or error
            continue
        return features(path, await _help(path, env))
    if wanted is None:
        raise NoProgram("cannot start a Lemonade Server: neither lemond nor lemonade-server is in PATH")
    raise trouble or NoProgram(f"cannot start {wanted}")


def features(path: str, text: str) -> LemonadeProgram:
    """What this program is, by its help. An unknown one is taken for a lemond of 10.1."""
    words = text.split()
    legacy = SERVE in words and "cache_dir" not in text
    if not text.strip():
        legacy = os.path.basename(path).startswith("lemonade-server")
    return LemonadeProgram(path, legacy, config_dir=CONFIG_DIR in text, no_broadcast=NO_BROADCAST in text)


async def _help(path: str, env: Mapping[str, str]) -> str:
    """What --help prints; "" when it does not come."""
    try:
        said = await run(env, HELP_PATIENCE, path, "--help")
    except AccelError as error:
        log.warning("%s", error.message)
        return ""
    return said.out + said.err


def command(program: LemonadeProgram, folders: Folders, port: int) -> tuple[str, ...]:
    """The command line; keys are in the environment."""
    where = ("--port", str(port), "--host", HOST)
    if program.legacy:
        return (program.path, SERVE, *where, "--no-tray", "--max-loaded-models", "-1")
    places = [str(folders.cache)]
    if program.config_dir:
        places.append(str(folders.config))
    quiet = (NO_BROADCAST,) if program.no_broadcast else ()
    return (program.path, *places, *where, *quiet)


def environment(program: LemonadeProgram, folders: Folders, base: Mapping[str, str], key: str) -> dict[str, str]:
    """The whole environment of the server, without its tag."""
    inherited = {name: value for name, value in base.items() if not name.startswith("LEMONADE_")}
    if defaults := base.get("LEMONADE_DEFAULTS_PATH"):
        inherited["LEMONADE_DEFAULTS_PATH"] = defaults
    inherited |= {KEY_VARIABLE: key, "LEMONADE_CACHE_DIR": str(folders.cache)}
    if "HF_HOME" not in inherited and "HF_HUB_CACHE" not in inherited and (home := inherited.get("HOME")):
        inherited["HF_HOME"] = f"{home}/.cache/huggingface"  # said, so that no version puts models into its own folder
    if program.legacy:
        # 10.0 runs once for each user, by a lock in this folder: the user's own server shall be able to run too.
        inherited |= {"XDG_RUNTIME_DIR": str(folders.runtime), "LEMONADE_NO_BROADCAST": "1"}
        inherited |= {"LEMONADE_HOST": HOST, "LEMONADE_MAX_LOADED_MODELS": "-1"}
    return inherited


def prepare(program: LemonadeProgram, folders: Folders, port: int, base: Mapping[str, str]) -> None:
    """Make the folders and write the settings. OSError. Blocking."""
    for folder in (folders.cache, folders.config, folders.runtime):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = folders.config if program.config_dir else folders.cache
    if not program.legacy:
        file = AtomicFile(settings / "config.json")
        file.write(json.dumps(_merged(_read(settings / "config.json"), _settings(port)), indent=2).encode())
    models = _users_models(base)
    if models is not None:
        AtomicFile(settings / USER_MODELS).write(models)


def _settings(port: int) -> dict[str, Any]:
    """What accelerd decides instead of the server: what is loaded, for how long, and who may see it."""
    return {
        "port": port,
        "host": HOST,
        "max_loaded_models": -1,
        "no_broadcast": True,  # as it was called until 11.6; newer ones turn it into `broadcast`
        "auto_evict": False,
        "inhibit_suspend": False,  # accelerd holds that lock itself, while requests run
        "flm": {"prefer_system": True},  # from 10.10 on an flm in PATH is not used without it
        "llamacpp": {"prefer_system": True},
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        found = from_json(path.read_bytes())
    except (OSError, ValueError):
        return {}  # the first start, or nothing that could be kept
    return found if isinstance(found, dict) else {}


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = {name: value for name, value in old.items() if name != "broadcast"}
    for name, value in new.items():
        before = merged.get(name)
        merged[name] = {**before, **value} if isinstance(value, dict) and isinstance(before, dict) else value
    return merged


def _users_models(base: Mapping[str, str]) -> bytes | None:
    """The models that the user has registered with a Lemonade of their own; None: none."""
    home = Path(base.get("HOME") or "/")
    own = base.get("LEMONADE_CACHE_DIR")
    for folder in (Path(own) if own else home / ".cache/lemonade", home / ".config/lemonade"):
        try:
            data = (folder / USER_MODELS).read_bytes()
            from_json(data)
        except (OSError, ValueError):
            continue
        return data
    return None
