"""A hub as far as it can be asked without huggingface-hub: its address, the token, the files of a repository.

The token comes from the environment, a systemd credential or the file that `hf auth login` writes. It is sent to the
hub alone and never shown. Blocks: call it in a thread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from msgspec import Struct

from accelerd.base import volumes
from accelerd.base.errors import AccelError
from accelerd.base.files import read_small
from accelerd.downloads.cache import expand, hub_home
from accelerd.downloads.choice import HubFile
from accelerd.estimate.remote import Web, host

HUB: Final = "https://huggingface.co"
CREDENTIALS: Final = ("hf_token", "HF_TOKEN")  # names of systemd credentials
YES: Final = ("1", "ON", "YES", "TRUE")
OFFLINE: Final = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class Listing(Struct, frozen=True):
    """What a repository holds."""

    repo: str
    files: tuple[HubFile, ...]
    commit: str = "main"


def endpoint(env: Mapping[str, str]) -> str:
    """The hub's address. AccelError if what the environment says is none."""
    address = (env.get("HF_ENDPOINT") or HUB).rstrip("/")
    if not address.startswith(("https://", "http://")):
        hint = f"write an address, such as {HUB}"
        raise AccelError("bad_request", f"HF_ENDPOINT is {address!r}, which is no address", hint=hint)
    return address


def token(env: Mapping[str, str], home: Path) -> str | None:
    """What the hub knows the user by."""
    if value := (env.get("HF_TOKEN") or env.get("HUGGING_FACE_HUB_TOKEN") or "").strip():
        return value
    named = env.get("HF_TOKEN_PATH")
    login = expand(named, env, home) if named else hub_home(env, home) / "token"
    return credential(env) or _first_of([login])


def credential(env: Mapping[str, str]) -> str | None:
    """The token that systemd gives the service (LoadCredential=hf_token:FILE)."""
    folder = env.get("CREDENTIALS_DIRECTORY")
    return _first_of([Path(folder, name) for name in CREDENTIALS]) if folder else None


def _first_of(files: list[Path]) -> str | None:
    """What the first of the files that can be read says."""
    for file in files:
        try:
            volumes.check([os.fspath(file)])
            text = read_small(file).decode().strip()
        except (OSError, ValueError):
            continue
        if text:
            return text
    return None


def offline(env: Mapping[str, str]) -> str:
    """The variable that forbids the network; empty: none does."""
    return next((name for name in OFFLINE if env.get(name, "").upper() in YES), "")


def open_hub(env: Mapping[str, str], home: Path) -> Web:
    """Requests to the hub. AccelError: the user forbids them."""
    if variable := offline(env):
        text = f"{variable} is set, so nothing is downloaded"
        raise AccelError("hub_offline", text, hint=f"unset {variable}, or download the model on another machine")
    return Web(endpoint(env), token(env, home))


def list_files(repo: str, web: Web) -> Listing:
    """The files of a repository with their sizes. AccelError."""
    try:
        answer = web.json(f"{web.hub}/api/models/{repo}?blobs=true")
    except AccelError as error:
        if error.code in ("model_gated", "hub_not_found"):
            # a hub answers 401 for what does not exist, too: it does not tell which
            raise AccelError(error.code, f"{repo}: {error.problem}", hint=error.hint) from error
        raise
    listed = answer.get("siblings") if isinstance(answer, dict) else None
    if not isinstance(listed, list):
        text = f"{host(web.hub)} sent no list of the files of {repo}"
        raise AccelError("download_failed", text, hint="check HF_ENDPOINT")
    files = [_file(one) for one in listed if isinstance(one, dict) and isinstance(one.get("rfilename"), str)]
    commit = answer.get("sha")
    return Listing(repo, tuple(files), commit if isinstance(commit, str) and commit.isalnum() else "main")


def _file(told: dict[str, Any]) -> HubFile:
    size = told.get("size")
    return HubFile(told["rfilename"], size if isinstance(size, int) and size > 0 else 0)


def file_url(repo: str, commit: str, name: str, web: Web) -> str:
    return f"{web.hub}/{repo}/resolve/{commit}/{quote(name)}"
