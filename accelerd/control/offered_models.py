"""The models that remotes offer beside those of the configuration: keeps names and scheduler to what is known of them.

Asks no remote; hears when one has other models than before. Decides nothing about their lifecycle.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from accelerd.base.events import EventStream
from accelerd.config.model import Config, ModelSpec
from accelerd.control.configured_models import ConfiguredModels, Forecasts
from accelerd.engines.remote.remotes import OffersChanged, Remotes
from accelerd.gateway.request_router import RequestRouter

log = logging.getLogger(__name__)


class OfferedModels:
    """Applies a configuration with what remotes offer. All methods on the event loop's thread."""

    def __init__(self, remotes: Remotes, router: RequestRouter, models: ConfiguredModels, events: EventStream) -> None:
        self._remotes = remotes
        self._router = router
        self._models = models
        self._config = Config()
        self._offered: Sequence[ModelSpec] = ()
        events.subscribe(OffersChanged, self.on_offers_changed)

    def configure(self, config: Config, forecasts: Forecasts, relaunch: Sequence[str] = ()) -> None:
        """Apply a configuration. Running requests go on; models in `relaunch` are replaced when idle."""
        others = self._remotes.configure(config.remotes, config.models)
        self._config, self._offered = config, self._remotes.offered(config.models)
        self._name()
        elsewhere = [spec.name for spec in self._offered if spec.remote in others]
        self._models.configure(config, forecasts, self._offered, [*relaunch, *elsewhere])

    def on_offers_changed(self, event: OffersChanged) -> None:
        before, self._offered = self._offered, self._remotes.offered(self._config.models)
        was, now = ({spec.name for spec in offered} for offered in (before, self._offered))
        if was == now:
            return
        told = {"offers now": now - was, "does not offer any more": was - now}
        for what, names in told.items():
            if names:
                log.info("the remote %s %s: %s", event.remote, what, ", ".join(sorted(names)))
        self._name()
        self._models.offer(self._offered)

    def _name(self) -> None:
        config, server = self._config, self._config.server
        models = [*config.models.values(), *self._offered]
        self._router.configure(models, config.routes.values(), server.default_model, server.default_fallbacks)
