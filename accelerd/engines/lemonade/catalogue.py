"""What is known of Lemonade's models by now: what servers listed, and how the loaded ones are reached.

Shared by the engine, which describes models, and the home, which loads them. Asks nobody; what was known is kept in a
file, since a model is described long before a server runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from accelerd.config.model import ModelSpec
from accelerd.engines.lemonade.client import Address, Listed

# Recipes whose backends are OpenAI servers themselves: requests go straight to them.
DIRECT: Final = frozenset(("llamacpp", "flm"))
MOST_KNOWN: Final = 4096  # models of all servers


@dataclass(frozen=True)
class Known:
    """One model, as far as it is known."""

    recipe: str = ""
    size: int | None = None  # bytes
    downloaded: bool | None = None
    labels: tuple[str, ...] = ()
    checkpoint: str = ""
    context: int | None = None
    direct: bool | None = None  # is it asked at its own backend? None: not loaded yet
    device: str = ""  # as the server says while it is loaded: "gpu npu"


class Catalogue:
    """See the module's text. Names are compared without regard to case, as Lemonade's own have changed in it."""

    def __init__(self, kept: bytes = b"") -> None:
        """`kept`: what an earlier daemon knew, its `dump`."""
        self._known: dict[str, Known] = _parsed(kept)
        self.address: Address | None = None  # of the server that accelerd runs, while it runs

    def note(self, listed: Iterable[Listed]) -> None:
        """What a server lists."""
        for one in listed:
            before = self.of(one.model)
            self._keep(
                one.model,
                replace(
                    before,
                    recipe=one.recipe or before.recipe,
                    size=one.size or before.size,
                    downloaded=one.downloaded if one.downloaded is not None else before.downloaded,
                    labels=one.labels or before.labels,
                    checkpoint=one.checkpoint or before.checkpoint,
                    context=one.context or before.context,
                ),
            )

    def loaded(self, model: str, recipe: str, checkpoint: str, device: str, *, direct: bool) -> None:
        """It is loaded, and is reached in this way."""
        before = self.of(model)
        self._keep(
            model,
            replace(
                before,
                recipe=recipe or before.recipe,
                checkpoint=checkpoint or before.checkpoint,
                device=device,
                direct=direct,
            ),
        )

    def dump(self) -> bytes:
        """All that is known, to be kept."""
        return msgspec.json.encode(self._known)

    def of(self, model: str) -> Known:
        return self._known.get(model.casefold(), Known())

    def recipe(self, spec: ModelSpec) -> str:
        """Its recipe; where no server has told, what its name and settings say."""
        name = (spec.model or "").casefold()
        known = self.of(name).recipe
        if known:
            return known
        if name.endswith("-flm"):
            return "flm"
        return "whispercpp" if spec.transcription else "llamacpp"

    def _keep(self, model: str, known: Known) -> None:
        while len(self._known) >= MOST_KNOWN and model.casefold() not in self._known:
            self._known.pop(next(iter(self._known)))
        self._known[model.casefold()] = known


def _parsed(kept: bytes) -> dict[str, Known]:
    try:
        return msgspec.json.decode(kept, type=dict[str, Known]) if kept else {}
    except msgspec.MsgspecError:
        return {}  # of another version: servers tell it again
