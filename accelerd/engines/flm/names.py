"""The names of FastFlowLM's models, as people and other programs write them. Pure.

Its own is the tag, `qwen3:4b`; Lemonade writes `qwen3-4b-FLM`, people `qwen3-4b`, and nobody minds case.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

SUFFIX: Final = "-flm"


def plain(name: str) -> str:
    """One spelling for all: `qwen3-4b`."""
    return name.strip().lower().removesuffix(SUFFIX).replace(":", "-")


def find(name: str, known: Iterable[str]) -> str | None:
    """The tag among those known; a family alone, where it has one member. None: there is none, or more than one."""
    tags = list(known)
    wanted = plain(name)
    for tag in tags:
        if plain(tag) == wanted:
            return tag
    family = [tag for tag in tags if tag.partition(":")[0].lower() == wanted]
    return family[0] if len(family) == 1 else None


def tag_of(name: str, known: Iterable[str] = ()) -> str:
    """The tag, of a model that is not known too: what follows the last dash is its size."""
    found = find(name, known)
    if found is not None:
        return found
    if ":" in name:
        return name.strip().lower().removesuffix(SUFFIX)
    family, dash, size = plain(name).rpartition("-")
    return f"{family}:{size}" if dash else size


def model_name(tag: str) -> str:
    """How accelerd calls it: `npu/qwen3-4b`."""
    return f"npu/{plain(tag)}"


def near(name: str, known: Iterable[str], most: int = 4) -> list[str]:
    """Tags that were perhaps meant: of its family, else of a name like it."""
    tags = list(known)
    wanted = plain(name)
    family = [tag for tag in tags if tag.partition(":")[0].lower() in (wanted, wanted.rpartition("-")[0])]
    by_plain = {plain(tag): tag for tag in tags}
    like = [by_plain[one] for one in difflib.get_close_matches(wanted, by_plain, n=most, cutoff=0.5)]
    return list(dict.fromkeys([*like, *family]))[:most]
