"""The one error type: a code, what a person should do, and how each boundary shows it.

A code maps to an HTTP status and an OpenAI `error.type`; the bus derives its error name and the journal its field from
the same code. Nothing here knows an HTTP or D-Bus library.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple


class Kind(NamedTuple):
    """How one error code looks from outside."""

    status: int
    type: str
    retryable: bool = False  # may the same request succeed later without anybody changing anything?


KINDS: Final[dict[str, Kind]] = {
    # the client's request
    "bad_request": Kind(400, "invalid_request_error"),
    "unauthorized": Kind(401, "authentication_error"),
    "host_not_allowed": Kind(403, "permission_error"),
    "origin_not_allowed": Kind(403, "permission_error"),
    "not_found": Kind(404, "invalid_request_error"),
    "model_not_found": Kind(404, "invalid_request_error"),
    "method_not_allowed": Kind(405, "invalid_request_error"),
    "request_timeout": Kind(408, "invalid_request_error", True),
    "body_too_large": Kind(413, "invalid_request_error"),
    "unsupported_media_type": Kind(415, "invalid_request_error"),
    # waiting for a model
    "queue_full": Kind(429, "rate_limit_error", True),
    "queue_timeout": Kind(503, "service_unavailable_error", True),
    "shutting_down": Kind(503, "service_unavailable_error", True),
    "model_failed": Kind(503, "service_unavailable_error"),  # cannot start until somebody changes something
    "model_backing_off": Kind(503, "service_unavailable_error", True),  # failed lately, will be tried again
    "model_unloaded": Kind(503, "service_unavailable_error", True),  # unloaded by a person while this waited
    "model_out_of_memory": Kind(503, "service_unavailable_error"),  # killed for want of memory, and there is no more
    "does_not_fit": Kind(503, "service_unavailable_error"),
    "memory_in_use": Kind(503, "service_unavailable_error", True),  # it would fit, but other programs have the memory
    "yielded": Kind(503, "service_unavailable_error", True),  # a person, or a game, wants the memory now
    "model_stuck": Kind(503, "service_unavailable_error", True),  # a process of it cannot be ended
    "device_quarantined": Kind(503, "service_unavailable_error", True),  # such a process may hold its device
    "too_many_connections": Kind(503, "service_unavailable_error", True),
    # the engine behind
    "upstream_failed": Kind(502, "upstream_error", True),
    "upstream_timeout": Kind(504, "upstream_error", True),
    # toolboxes
    "toolbox_not_found": Kind(404, "invalid_request_error"),
    "toolbox_busy": Kind(409, "invalid_request_error", True),  # somebody is inside, or a refresh runs already
    "toolbox_pinned": Kind(409, "invalid_request_error"),
    "toolbox_failed": Kind(502, "upstream_error"),  # podman, toolbox or the new image; what was changed is undone
    # jobs and pins
    "job_not_found": Kind(404, "invalid_request_error"),
    "pin_not_found": Kind(404, "invalid_request_error"),
    "pin_conflict": Kind(409, "invalid_request_error"),  # what is pinned already leaves no room for it, ever
    "too_many_pins": Kind(429, "rate_limit_error"),
    # control
    "busy": Kind(409, "invalid_request_error", True),  # it would disturb, or be disturbed by, what runs
    "config_invalid": Kind(422, "invalid_request_error"),
    "internal": Kind(500, "internal_error"),
}


class AccelError(Exception):
    """An error that a person or a program outside is meant to see.

    `message` begins in lower case with "cannot …" or names what is wrong, and says what to do where there is something.
    `retry_after` is in seconds. `fields` are extra JSON-ready facts (never prompts, keys or environment).
    """

    def __init__(
        self, code: str, message: str, *, retry_after: float | None = None, param: str | None = None, **fields: Any
    ) -> None:
        super().__init__(message)
        self.kind = KINDS[code]
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.param = param
        self.fields = fields

    @property
    def status(self) -> int:
        return self.kind.status

    def openai(self) -> dict[str, Any]:
        """The body that OpenAI's clients parse: {"error": {message, type, param, code, …fields}}."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind.type,
                "param": self.param,
                "code": self.code,
                **self.fields,
            }
        }


class InternalError(AssertionError):
    """A bug in accelerd itself: an event that the lifecycle table does not allow, a broken invariant."""
