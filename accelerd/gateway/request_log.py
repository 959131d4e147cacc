"""One line in the journal for each inference request, with fields: the model, how it ended, how long it took.

Never anything of the request's or the answer's content.
"""

from __future__ import annotations

import logging

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.gateway.connection import ClientConnection
from accelerd.gateway.relay import Relay
from accelerd.gateway.request_parser import HttpRequest
from accelerd.system.records import event

log = logging.getLogger(__name__)

CLIENT_GONE = "client_disconnected"  # how a request ended whose client did not wait for the answer
LEAST_WAIT = 0.005  # s that a request waits for its model to have it said


def log_refusal(
    request: HttpRequest, connection: ClientConnection, error: AccelError, model: str | None = None
) -> None:
    """A request that was refused before anything was asked of a model. `model`: as the client has it."""
    text = f"{f'{model}: ' if model else ''}{request.path}: {error.status} {error.code}"
    _log(request, connection, text, model=model, status=error.status, error=error.code)


def log_answer(
    request: HttpRequest, connection: ClientConnection, relay: Relay, model: str, now: float, outcome: str | None
) -> None:
    """A request that has its answer, or whose client has gone. `outcome`: a code where it has failed."""
    if not log.isEnabledFor(logging.INFO):
        return
    seconds = now - relay.began
    waited = (relay.leased if relay.leased is not None else now) - relay.began
    first = relay.first_byte - relay.began if relay.first_byte is not None else None
    text = f"{model}: {request.path}: {relay.status or '-'}{f' {outcome}' if outcome else ''} in {seconds:.2f} s"
    if waited >= LEAST_WAIT:
        text += f", of which it waited {waited:.2f} s"
    if first is not None and relay.stream:
        text += f", first byte after {first:.2f} s"
    _log(
        request,
        connection,
        text,
        model=model,
        status=relay.status,
        error=outcome,
        seconds=f"{seconds:.3f}",
        waited=f"{waited:.3f}",
        first_byte=f"{first:.3f}" if first is not None else None,
        stream=int(relay.stream),
    )


def _log(request: HttpRequest, connection: ClientConnection, text: str, **fields: object) -> None:
    event(
        log,
        logging.INFO,
        text,
        message_id=names.MSG_REQUEST,
        path=request.path,
        request=request.id,
        peer=connection.peer,
        stacklevel=2,
        **fields,
    )
