"""What a person names as the source of a model: a repository of a hub, a file in one, or an address. Pure."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

from msgspec import Struct

from accelerd.base.errors import AccelError

SCHEME: Final = "hf:"
HOSTS: Final = ("huggingface.co", "www.huggingface.co", "hf.co")
PART: Final = r"[A-Za-z0-9][\w.-]{0,95}"
REPOSITORY: Final = re.compile(f"{PART}/{PART}", re.ASCII)
QUANT: Final = re.compile(r"[\w.-]{1,64}", re.ASCII)
ADDRESSES: Final = ("https://", "http://")
WRITTEN: Final = "write https://SERVER/PATH/FILE.gguf"
NO_SECRETS: Final = "addresses are stored and shown: download the file yourself, then add it by its path"
NAMED: Final = "a model of a hub is named ORG/REPO or ORG/REPO:QUANT, such as hf:ggml-org/gemma-3-4b-it-GGUF:Q4_K_M"


class Source(Struct, frozen=True):
    """Exactly one of `repo` and `url` is set."""

    repo: str = ""  # "ORG/REPO"
    quant: str = ""  # "Q4_K_M"; empty: whatever fits
    file: str = ""  # in the repository, when one is named
    url: str = ""

    @classmethod
    def parse(cls, text: str) -> Source:
        """Of "hf:ORG/REPO[:QUANT]", the same without "hf:", "ORG/REPO/FILE.gguf", or an address. AccelError."""
        text = text.strip()
        if text.startswith(ADDRESSES):
            return _address(text)
        name = text.removeprefix(SCHEME).removeprefix("//")
        if name.partition("/")[0].lower() in HOSTS:
            return _address(f"https://{name}")
        name, _, quant = name.strip("/").partition(":")
        return _in_hub(text, name, quant)

    @property
    def public(self) -> str:
        """For messages, jobs and the journal: of an address without its query, which may be secret."""
        split = urlsplit(self.url)
        return urlunsplit((split.scheme, split.netloc, split.path, "", "")) if self.url else str(self)

    def __str__(self) -> str:
        """As it stands in a configuration."""
        if self.url:
            return self.url
        return f"{self.repo}/{self.file}" if self.file else f"{self.repo}:{self.quant}" if self.quant else self.repo


def is_source(text: str) -> bool:
    """Could it be a source and nothing else? A file of that name may still be there."""
    try:
        Source.parse(text)
    except AccelError:
        return False
    return True


def _in_hub(text: str, name: str, quant: str) -> Source:
    quant = "" if quant.lower() == "latest" else quant
    repo = "/".join(name.split("/")[:2])
    file = name[len(repo) + 1 :]
    if not REPOSITORY.fullmatch(repo) or (quant and not QUANT.fullmatch(quant)) or ".." in repo:
        raise AccelError("bad_request", f"{text} names no model of a hub", hint=NAMED)
    if file and (not file.lower().endswith(".gguf") or quant or ".." in file.split("/")):
        raise AccelError("bad_request", f"{text} names no GGUF file of {repo}", hint=NAMED)
    return Source(repo, quant, file)


def _address(text: str) -> Source:
    try:
        split = urlsplit(text)
        secret, valid = "@" in split.netloc, bool(split.hostname) and split.port != 0
    except ValueError:  # perhaps a password with a character that ends the server's name: it is not shown
        raise AccelError("bad_request", "the server of the address is not valid", hint=WRITTEN) from None
    if not secret and "@" in text:  # perhaps of a password that has a "/" in it, which would be stored and shown
        text = "the address has an @ behind the server's name, which may be that of a password"
        raise AccelError("bad_request", text, hint="write %40 for an @ that belongs to the path")
    if secret:
        problem = f"the address of a file at {split.netloc.rpartition('@')[2]} has a user or a password in it"
        raise AccelError("bad_request", problem, hint=NO_SECRETS)
    if not valid:
        raise AccelError("bad_request", f"{text} is not an address", hint=WRITTEN)
    path = unquote(split.path).strip("/")
    if split.hostname in HOSTS:
        parts = path.split("/")
        name, _, quant = "/".join(parts[:2]).partition(":")
        if len(parts) > 4 and parts[2] in ("resolve", "blob", "raw") and parts[3] == "main":
            return _in_hub(text, f"{name}/{'/'.join(parts[4:])}", "")
        if len(parts) == 2 or (len(parts) > 2 and parts[2] == "tree"):
            return _in_hub(text, name, quant)
    if not path.lower().endswith(".gguf"):
        hint = f"for a model of a hub: {SCHEME}ORG/REPO:QUANT"
        raise AccelError("bad_request", f"{text} is not the address of a GGUF file", hint=hint)
    return Source(url=urlunsplit((split.scheme, split.netloc, split.path, split.query, "")))
