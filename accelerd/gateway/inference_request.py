"""One inference request on its way: where it goes, and its body as the engine there expects it. Sends nothing."""

from __future__ import annotations

from msgspec import Struct, field

from accelerd.config.model import ModelSpec
from accelerd.gateway.dialects.translation import TranslatedRequest
from accelerd.gateway.going_on import Attempts
from accelerd.gateway.request_body import FormBody, SeveralBody, with_model
from accelerd.gateway.request_facts import RequestFacts, RequestInfo
from accelerd.gateway.request_router import UpstreamTarget
from accelerd.gateway.responses import ASSEMBLED, LISTED, WHOLE
from accelerd.gateway.variant_edits import edited, edited_form
from accelerd.scheduler.service import Ticket


class InferenceRequest(Struct):
    """A request as it goes to its engine."""

    target: UpstreamTarget
    original_body: bytes
    content_type: str
    facts: RequestFacts
    attempts: Attempts = field(default_factory=Attempts)
    translated: tuple[UpstreamTarget, TranslatedRequest] | None = None  # how the body was translated the last time
    made: tuple[UpstreamTarget, bytes] | None = None  # the body, as it was made the last time
    returns: int = 0  # into the queue, because its engine had died before it read the request
    ticket: Ticket | None = None  # its place in the queue, before it waits there
    patient: bool = False  # it waits out a back-off, because no other model can answer it now

    @property
    def path(self) -> str:
        """The client's."""
        return self.facts.path

    @property
    def info(self) -> RequestInfo:
        return self.facts.info

    @property
    def stream(self) -> bool:
        """Does the client expect a stream of events, or lines?"""
        return bool(self.info.stream) and self.path not in WHOLE

    @property
    def misnamed(self) -> bool:
        """Does the engine say another name of the model than the client has said?"""
        return self.target.misnamed or self.info.model not in (None, self.target.model)

    def answers_apart(self, spec: ModelSpec) -> int:
        """How many answers are asked for one after the other, because the engine would refuse so many at once; or 1."""
        paths = ASSEMBLED if self.stream else (*ASSEMBLED, *LISTED)
        if not isinstance(self.info, SeveralBody) or self.engines_path not in paths:
            return 1
        wanted = self.info.answers
        return wanted if wanted > spec.parallel else 1

    @property
    def engines_path(self) -> str:
        """The path of the API that the engine is asked by."""
        return self.path if self.target.translation is None else self.target.translation.engine

    def translate(self) -> TranslatedRequest | None:
        """The request in the API of the engine, where that is another. AccelError if it cannot be said there."""
        translation = self.target.translation
        if translation is None:
            return None
        if self.translated is None or self.translated[0] != self.target:
            self.translated = self.target, translation.request(self._edited()[0])
        return self.translated[1]

    def body(self) -> bytes:
        """As the engine expects it: changed by variants, in its API, and with the model's name as it knows it."""
        if self.made is None or self.made[0] is not self.target:
            self.made = self.target, self._body()
        return self.made[1]

    def _body(self) -> bytes:
        name, translated = self.target.wire_name, self.translate()
        if translated is not None:
            return translated.body if name is None else with_model(translated.body, name)
        body, info = self._edited()
        if name is None:
            return body
        return info.with_model(body, name) if isinstance(info, FormBody) else with_model(body, name)

    def _edited(self) -> tuple[bytes, RequestInfo]:
        """As the variants that its route names have it, and what it tells then."""
        body, info = self.original_body, self.info
        last = () if self.target.edit is None else (self.target.edit,)
        for variant in (*self.target.variants, *last):
            if isinstance(info, FormBody):
                body, info = edited_form(variant, body, info, self.path)
            else:
                body = edited(variant, body, self.path)
        return body, info
