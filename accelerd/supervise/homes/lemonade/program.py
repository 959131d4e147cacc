"""How the Lemonade Server that accelerd runs is started: its command line, environment, folders and settings.

Owns its private folders. The user's own (~/.config/lemonade, ~/.cache/lemonade) are read for the user's models and
never written: a server that is given --port writes it into its folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from accelerd.base.decoding import from_json
from accelerd.base.files import read_small
from accelerd.base.ports import Roots
from accelerd.engines.base import OwnedServer
from accelerd.engines.lemonade.program import NO_BROADCAST, SERVE, LemonadeProgram
from accelerd.engines.llama_server.environment import KEY_VARIABLE as LLAMA_KEY
from accelerd.system.private_files import AtomicFile

KEY_VARIABLE: Final = "LEMONADE_API_KEY"
HOST: Final = "127.0.0.1"
USER_MODELS: Final = "user_models.json"
TAKEN_OVER: Final = ("extra_models_dir", "models_dir")  # of the user's settings: where models are
PASSED: Final = ("LEMONADE_DEFAULTS_PATH", "LEMONADE_EXTRA_MODELS_DIR")
# Settings for the program of llama.cpp's models, by what it computes with: the server chooses one of them.
LLAMA_PROGRAMS: Final = ("cpu_bin", "vulkan_bin", "rocm_bin", "cuda_bin")


class Secrets(Struct, frozen=True):
    """The keys of one start; none is ever shown."""

    server: str
    backends: str  # its llama-servers'


class Folders(Struct, frozen=True):
    """What the server of accelerd owns."""

    cache: Path
    config: Path
    runtime: Path

    @classmethod
    def of(cls, roots: Roots) -> Folders:
        return cls(roots.cache / "lemonade", roots.state / "lemonade", roots.runtime / "lemonade")


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


def environment(
    program: LemonadeProgram, folders: Folders, base: Mapping[str, str], secrets: Secrets, own: OwnedServer
) -> dict[str, str]:
    """The whole environment of the server, which its backends inherit, without its tag."""
    inherited = {name: value for name, value in base.items() if name in PASSED or not name.startswith("LEMONADE_")}
    inherited |= {KEY_VARIABLE: secrets.server, "LEMONADE_CACHE_DIR": str(folders.cache)}
    # Its llama-servers get no key from it, and would answer every page of a browser.
    inherited |= {LLAMA_KEY: secrets.backends, "LLAMA_ARG_CORS_ORIGINS": "localhost"}
    if "HF_HOME" not in inherited and "HF_HUB_CACHE" not in inherited and (home := inherited.get("HOME")):
        inherited["HF_HOME"] = f"{home}/.cache/huggingface"  # said, so that no version puts models into its own folder
    # It has its log there, and 10.0 a lock: the user's own server has the user's, and shall be able to run too.
    inherited["XDG_RUNTIME_DIR"] = str(folders.runtime)
    if program.legacy:
        inherited |= {"LEMONADE_NO_BROADCAST": "1", "LEMONADE_HOST": HOST, "LEMONADE_MAX_LOADED_MODELS": "-1"}
        if own.llama_server:
            inherited |= {f"LEMONADE_LLAMACPP_{name.upper()}": own.llama_server for name in LLAMA_PROGRAMS}
    return inherited


def prepare(program: LemonadeProgram, folders: Folders, port: int, base: Mapping[str, str], own: OwnedServer) -> None:
    """Make the folders and write the settings. OSError. Blocking."""
    for folder in (folders.cache, folders.config, folders.runtime):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = folders.config if program.config_dir else folders.cache
    if not program.legacy:
        file = settings / "config.json"
        theirs = {name: value for name, value in _users(base, "config.json").items() if name in TAKEN_OVER and value}
        said = _merged(_without_lost_programs(_read(file)), {**theirs, **_settings(port, own)})
        AtomicFile(file).write(json.dumps(said, indent=2).encode())
    if models := _users(base, USER_MODELS):
        AtomicFile(settings / USER_MODELS).write(json.dumps(models).encode())


def _settings(port: int, own: OwnedServer) -> dict[str, Any]:
    """What accelerd decides instead of the server: what is loaded, for how long, with what, and who may see it."""
    llama: dict[str, Any] = dict.fromkeys(LLAMA_PROGRAMS, own.llama_server) if own.llama_server else {}
    return {
        "port": port,
        "host": HOST,
        "max_loaded_models": -1,
        "no_broadcast": True,  # as it was called until 11.6; newer ones turn it into `broadcast`
        "auto_evict": False,
        "inhibit_suspend": False,  # accelerd holds that lock itself, while requests run
        "no_fetch_executables": not own.downloads,
        "auto_check_model_updates": False,  # else it asks the hub about every model at each start
        "flm": {"prefer_system": True},  # from 10.10 on an flm in PATH is not used without it
        "llamacpp": {**llama, "prefer_system": not llama},  # "system" is the one in PATH, not the configured one
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        found = from_json(read_small(path))
    except (OSError, ValueError):
        return {}  # the first start, or nothing that could be kept
    return found if isinstance(found, dict) else {}


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = {name: value for name, value in old.items() if name != "broadcast"}
    for name, value in new.items():
        before = merged.get(name)
        merged[name] = {**before, **value} if isinstance(value, dict) and isinstance(before, dict) else value
    return merged


def _without_lost_programs(settings: dict[str, Any]) -> dict[str, Any]:
    """A program that is not there any more would fail every load."""
    llama = settings.get("llamacpp")
    if isinstance(llama, dict):
        lost = {n for n in LLAMA_PROGRAMS if str(llama.get(n, "")).startswith("/") and not os.path.exists(llama[n])}
        settings["llamacpp"] = {name: value for name, value in llama.items() if name not in lost}
    return settings


def _users(base: Mapping[str, str], name: str) -> dict[str, Any]:
    """A file of the Lemonade Server that the user runs; {} without one. After 11.7 they lie in ~/.config/lemonade."""
    home = Path(base.get("HOME") or "/")
    named = base.get("LEMONADE_CACHE_DIR")
    folders = [Path(named)] if named else []
    folders += [
        Path(base.get(variable) or home / usual) / "lemonade"
        for variable, usual in (("XDG_CONFIG_HOME", ".config"), ("XDG_CACHE_HOME", ".cache"))
    ]
    return next((found for folder in folders if (found := _read(folder / name))), {})
