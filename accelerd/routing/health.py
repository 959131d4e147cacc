"""The health of deployments, from how requests to them end. Pure: outcomes in, and with the time what they mean.

A deployment that has failed cools down: routes pass it over. When that time is over one request tries it, and only its
success makes the deployment usable again. What a client has caused, and a path that an engine does not have, says
nothing of a deployment; that it has no model of that name does.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final

from msgspec import Struct

from accelerd.base.errors import AccelError
from accelerd.engines.http import REFUSED

NOT_NOW: Final = frozenset((408, 429))
NOT_HERE: Final = frozenset((404, 405, 501))  # it does not have this path, or not this model: another one may
LONGEST_COOLING: Final = 600.0  # s, whatever a Retry-After says
COOLED: Final = frozenset(("upstream_failed", "upstream_timeout"))  # codes of failures without an answer


def cools(error: AccelError) -> bool:
    """Does the failure say that the deployment does not work, for requests of others too?"""
    status = error.fields.get("engine_status")
    if isinstance(status, int):
        return (
            lacks_model(error) or status in REFUSED or status in NOT_NOW or (status >= 500 and status not in NOT_HERE)
        )
    return error.code in COOLED


def lacks_model(error: AccelError) -> bool:
    """Has the server answered that it has no model of that name?"""
    return error.fields.get("model_not_found") is True


def may_go_on(status: int) -> bool:
    """May another deployment answer what this one has answered with an error of this status?

    Only what the client has caused comes from any.
    """
    return status >= 500 or status in REFUSED or status in NOT_NOW or status in NOT_HERE


class HealthState(StrEnum):
    USABLE = "usable"
    COOLING = "cooling"
    NO_MODEL = "model not found there"  # likewise
    TRIAL = "trial"  # one request may try it, or does


class Failure(Struct, frozen=True):
    at: float
    code: str
    message: str


class DeploymentHealth(Struct, frozen=True):
    """What is known of one deployment. `until`: when it has cooled down."""

    state: HealthState = HealthState.USABLE
    until: float | None = None
    tried: bool = False  # the one request is under way
    last_failure: Failure | None = None
    successes: int = 0
    failures: int = 0


class Course(Struct):
    """The mutable part of it."""

    until: float | None = None  # None: usable
    length: float = 0.0
    trial_since: float | None = None
    lacks_model: bool = False  # that is why
    last_failure: Failure | None = None
    successes: int = 0
    failures: int = 0


class Health:
    """Of all deployments, by name of the model."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._courses: dict[str, Course] = {}

    def of(self, name: str) -> DeploymentHealth:
        course = self._courses.get(name)
        if course is None:
            return HEALTHY
        state = HealthState.USABLE
        if course.until is not None:
            cooling = HealthState.NO_MODEL if course.lacks_model else HealthState.COOLING
            state = cooling if self._now() < course.until else HealthState.TRIAL
        return DeploymentHealth(
            state, course.until, self._tried(course), course.last_failure, course.successes, course.failures
        )

    def why_not(self, name: str) -> str:
        """Why a route passes the deployment over, in a clause; "" if it does not."""
        course = self._courses.get(name)
        if course is None or course.until is None:
            return ""
        left = course.until - self._now()
        if left > 0 and course.lacks_model:
            return f"is not there: its server has no model of that name, and is asked again in {left:.0f} s"
        if left > 0:
            return f"has failed and cools down for {left:.0f} s more"
        return "has failed, and a request tries it" if self._tried(course) else ""

    def cooling(self) -> list[str]:
        """Those that are not usable without a trial."""
        return [name for name, course in self._courses.items() if course.until is not None]

    def begin(self, name: str) -> None:
        """A request is sent to it. The first one after the cooling is the trial."""
        course = self._courses.get(name)
        if course is not None and course.until is not None and self._now() >= course.until:
            course.trial_since = self._now()

    def succeeded(self, name: str) -> None:
        course = self._courses.setdefault(name, Course())
        course.until = course.trial_since = None
        course.successes += 1

    def failed(self, name: str, error: AccelError, cooldown: float) -> None:
        """By what a request has met there. `cooldown`: seconds; a longer Retry-After counts."""
        course = self._courses.setdefault(name, Course())
        course.last_failure = Failure(self._now(), error.code, error.message)
        course.failures += 1
        course.trial_since = None
        course.lacks_model = lacks_model(error)
        if cooldown > 0:
            course.length = max(cooldown, min(error.retry_after or 0.0, LONGEST_COOLING))
            course.until = self._now() + course.length

    def left(self, name: str) -> None:
        """A request has ended without saying anything of it, such as one whose client has gone."""
        if (course := self._courses.get(name)) is not None:
            course.trial_since = None

    def excuse(self, name: str) -> None:
        """Its failure was that of the request, with which another deployment has failed likewise."""
        if (course := self._courses.get(name)) is not None:
            course.until = course.trial_since = None

    def reachable(self, name: str) -> None:
        """It answers again, so that a trial need not wait any longer."""
        course = self._courses.get(name)
        if course is not None and course.until is not None:
            course.until = min(course.until, self._now())

    def keep(self, names: set[str]) -> None:
        """Forget all others: they are configured no more."""
        self._courses = {name: course for name, course in self._courses.items() if name in names}

    def _tried(self, course: Course) -> bool:
        """A trial that takes longer than the cooling does not keep others from trying."""
        return course.trial_since is not None and self._now() < course.trial_since + course.length


HEALTHY: Final = DeploymentHealth()
