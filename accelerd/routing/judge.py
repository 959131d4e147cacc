"""Which tier a request has on a route, and in which tier a conversation has been. Pure.

A conversation's tier rises with its messages and does not fall: "go on" is for the model that knows what it is about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerd.config.complexity import TIERS, Tier
from accelerd.config.model import Route
from accelerd.routing.sessions import SessionMemory
from accelerd.routing.verdict import Cause, Verdict

if TYPE_CHECKING:
    from accelerd.routing.complexity import Classifier  # loaded with the first request that is judged


class Judge:
    """Of the routes of one configuration; conversations outlive it."""

    def __init__(self) -> None:
        self._classifiers: dict[str, Classifier] = {}
        self._kept = SessionMemory[Tier]()

    def configure(self) -> None:
        """There is another configuration."""
        self._classifiers.clear()

    def verdict(self, route: Route, message: str, session: bytes | None) -> Verdict:
        """Of the last message of a person; "" where there is none. `session`: of the conversation, if it is one."""
        found = self._classifier(route).classify(message)
        if not route.complexity.keep_tier:
            return found
        kept = self._kept.recall(route.name, session)
        nothing_new = found.cause is Cause.NO_TEXT
        if kept is not None and (nothing_new or TIERS.index(kept) > TIERS.index(found.tier)):
            return Verdict(kept, found.score, Cause.CONVERSATION, found.dimensions)
        if not nothing_new:
            self._kept.remember(route.name, session, found.tier)
        return found

    def _classifier(self, route: Route) -> Classifier:
        if route.name not in self._classifiers:
            from accelerd.routing.complexity import Classifier

            self._classifiers[route.name] = Classifier(route.complexity)
        return self._classifiers[route.name]
