"""What is known about Lemonade's models: what servers have listed, and how to reach loaded models.

Shared by the engine, which describes models, and the home, which loads them. Contacts no server. The content is stored
in a file, because models are described before a server runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec.structs import asdict, replace

from accelerd.base.decoding import from_json
from accelerd.config.model import ModelSpec
from accelerd.engines.lemonade.client import LemonadeModel, ServerAddress, named

# Recipes whose backends are OpenAI servers: requests go directly to them.
DIRECT: Final = frozenset(("llamacpp", "flm"))
MOST_KNOWN: Final = 4096  # models of all servers


class Catalogue:
    """Models by name, ignoring case, because the case of Lemonade's names has changed."""

    def __init__(self, kept: bytes = b"") -> None:
        """`kept`: the `dump` of an earlier daemon."""
        self._known: dict[str, LemonadeModel] = _parsed(kept)
        self.address: ServerAddress | None = None  # of the server that accelerd runs, while it runs
        self.release: tuple[int, ...] = ()  # version of the server that was asked last; (): unknown

    def note(self, listed: Iterable[LemonadeModel]) -> None:
        """Stores the list of a server."""
        for one in listed:
            self._learn(one.model, **asdict(one))

    def loaded(self, model: str, recipe: str, checkpoint: str, device: str, *, direct: bool) -> None:
        """Records that a model is loaded and how to reach it."""
        self._learn(model, recipe=recipe, checkpoint=checkpoint, device=device, direct=direct)

    def dump(self) -> bytes:
        """The content as bytes, for storage."""
        return msgspec.json.encode(self._known)

    def of(self, model: str) -> LemonadeModel:
        return named(model, self._known) or LemonadeModel()

    def recipe(self, spec: ModelSpec) -> str:
        """Its recipe; if no server has reported it, a guess from name and settings."""
        name = (spec.model or "").casefold()
        known = self.of(name).recipe
        if known:
            return known
        if name.endswith("-flm"):
            return "flm"
        return "whispercpp" if spec.transcription else "llamacpp"

    def _learn(self, name: str, **told: Any) -> None:
        """What is not told stays as it is known."""
        known = replace(self.of(name), **{key: value for key, value in told.items() if value not in (None, "", ())})
        while len(self._known) >= MOST_KNOWN and name.casefold() not in self._known:
            self._known.pop(next(iter(self._known)))
        self._known[name.casefold()] = known


def _parsed(kept: bytes) -> dict[str, LemonadeModel]:
    try:
        return from_json(kept, dict[str, LemonadeModel]) if kept else {}
    except msgspec.DecodeError:
        return {}  # from another version; servers will list the models again
