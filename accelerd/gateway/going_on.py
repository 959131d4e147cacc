"""Where a request goes when a model has not answered it: to another one that may, or after a pause to the same again.

Knows what may be tried after which failure, and tells the router how each attempt has ended. Sends nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from msgspec import Struct, field

from accelerd.base.errors import AccelError
from accelerd.gateway.engine_errors import TOO_LONG
from accelerd.gateway.health_checks import HealthChecks
from accelerd.gateway.request_facts import RequestFacts
from accelerd.gateway.request_router import RequestRouter, UpstreamTarget

log = logging.getLogger(__name__)

# Errors that concern one model: another one of the route may answer.
OF_ONE_MODEL: Final = frozenset({
    "model_not_found", "not_supported_by_model", "model_failed", "model_backing_off", "model_unloaded",
    "model_out_of_memory", "does_not_fit", "memory_in_use", "yielded", "model_stuck", "device_quarantined",
    "upstream_failed", "upstream_timeout", "hub_not_found", "model_gated", "hub_offline", "disk_full",
    "download_failed", "canceled", "queue_full", "queue_timeout", TOO_LONG,
})  # fmt: skip
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # s: before all are asked again
LONGEST_WAIT: Final = 30.0  # s: a longer Retry-After is the client's to wait for
FAULTS: Final = frozenset((500,))  # statuses with which an engine answers what breaks it


class Attempts(Struct):
    """How one request has fared."""

    number: int = 1  # of models that were asked, with the one that is
    failed: dict[str, AccelError] = field(default_factory=dict)  # why these have not answered, by name
    repeated: int = 0  # times that all were asked again


class GoingOn:
    """For all requests."""

    def __init__(self, router: RequestRouter, checks: HealthChecks) -> None:
        self._router = router
        self._checks = checks

    def another(
        self,
        target: UpstreamTarget,
        facts: RequestFacts,
        attempts: Attempts,
        error: AccelError,
    ) -> UpstreamTarget | None:
        """The target after `target` has failed with this error; None: nobody else may answer."""
        if error.code not in OF_ONE_MODEL:
            return None
        attempts.failed[target.model] = error.bare()
        facts.too_long = facts.too_long or error.code == TOO_LONG
        failed = self._failed(facts, attempts.failed)
        found = self._router.another(facts, failed)
        if found is not None:
            attempts.number += 1
            log.info("%s: %s cannot answer (%s), %s is asked", facts.asked_for, target.model, error.code, found.model)
        return found

    def may_another(
        self,
        target: UpstreamTarget,
        facts: RequestFacts,
        attempts: Attempts,
        error: AccelError,
    ) -> bool:
        """Would there be another one after such an answer?"""
        before = facts.too_long
        facts.too_long = before or error.code == TOO_LONG
        try:
            failed = self._failed(facts, {**attempts.failed, target.model: error})
            if self._router.another(facts, failed, ask=False) is not None:
                return True
        finally:
            facts.too_long = before
        return self._pause(facts, {**attempts.failed, target.model: error}, attempts.repeated) is not None

    def waits_out(self, target: UpstreamTarget, facts: RequestFacts, attempts: Attempts, error: AccelError) -> bool:
        """Is it a back-off after which `target` may answer before anybody else?"""
        if error.code != "model_backing_off" or not self._router.several(facts):
            return False
        failed = self._failed(facts, {**attempts.failed, target.model: error})
        return not self._router.others_able(facts, failed)

    async def again(self, facts: RequestFacts, attempts: Attempts) -> UpstreamTarget | None:
        """After a pause the target where all that have failed are asked once more; None: that is not to be."""
        pause = self._pause(facts, attempts.failed, attempts.repeated)
        if pause is None:
            return None
        log.info("%s: nobody has answered, and all are asked again in %.1f s", facts.asked_for, pause)
        await asyncio.sleep(pause)
        attempts.repeated += 1
        attempts.failed = {name: error for name, error in attempts.failed.items() if not _passing(error)}
        found = self._router.another(facts, self._failed(facts, attempts.failed))
        if found is not None:
            attempts.number += 1
        return found

    def ended(self, target: UpstreamTarget, facts: RequestFacts, attempts: Attempts, error: AccelError | None) -> None:
        """An attempt has ended: the router learns how."""
        if error is None:
            self._router.succeeded(target, facts)
            return
        self._router.failed(target, error)
        if (spec := self._router.directory.models.get(target.model)) is not None:
            self._checks.begin(spec, error)
        faults = [name for name, one in attempts.failed.items() if one.fields.get("engine_status") in FAULTS]
        if error.fields.get("engine_status") in FAULTS and faults:
            for name in (*faults, target.model):  # what breaks two engines is the request
                self._router.health.excuse(name)

    def _pause(self, facts: RequestFacts, failed: Mapping[str, AccelError], repeated: int) -> float | None:
        """Seconds until all that may work then are asked again; None: they are not."""
        plan = self._router.plan(facts)
        retries = plan.route.retries if plan is not None and plan.route is not None else 0
        passing = [error for error in failed.values() if _passing(error)]
        if repeated >= retries or not passing:
            return None
        told = [error.retry_after for error in passing if error.retry_after is not None]
        pause: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2**repeated)
        if len(told) < len(passing):
            return pause
        return max(pause, min(told)) if min(told) <= LONGEST_WAIT else None

    def _failed(self, facts: RequestFacts, failed: Mapping[str, AccelError]) -> dict[str, str]:
        """Why these models are not asked, in words."""
        words: dict[str, str] = {}
        for name, error in failed.items():
            if error.code == TOO_LONG:
                words |= self._router.no_longer_than(facts, name, error.fields.get("tokens", 0))
            words[name] = f"has failed for this request ({error.code})"
        return words


def _passing(error: AccelError) -> bool:
    """May the same be answered a little later?"""
    status = error.fields.get("engine_status")
    return error.kind.retryable and (status is None or status == 429 or status >= 500)


def all_failed(facts: RequestFacts, attempts: Attempts) -> AccelError | None:
    """What is said where several models were asked in vain."""
    errors = list(attempts.failed.values())
    if len(errors) < 2:
        return None
    chosen = next((error for error in errors if error.kind.retryable), errors[0])
    text = f"no model of {facts.asked_for} could answer: {'; '.join(error.message for error in errors)}"
    return AccelError(chosen.code, text, retry_after=chosen.retry_after, param=chosen.param)
