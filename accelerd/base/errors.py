"""The one error type: a code, what a person should do, and how each boundary shows it.

A code maps to an HTTP status, an OpenAI `error.type` and an error's name on the bus; the journal's field is the code
itself. Nothing here knows an HTTP or D-Bus library.
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
    "not_supported_by_model": Kind(400, "invalid_request_error"),  # or not by its engine: another model may do it
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
    # jobs, pins, the session bus
    "device_not_found": Kind(404, "invalid_request_error"),
    "job_not_found": Kind(404, "invalid_request_error"),
    "pin_not_found": Kind(404, "invalid_request_error"),  # ended already, or another client's
    "pin_conflict": Kind(409, "invalid_request_error"),  # what is pinned already leaves no room for it, ever
    "too_many_pins": Kind(429, "rate_limit_error"),
    "not_supported": Kind(405, "invalid_request_error"),
    "too_many_calls": Kind(429, "rate_limit_error", True),  # under way for one client, or for all together
    # control
    "busy": Kind(409, "invalid_request_error", True),  # it would disturb, or be disturbed by, what runs
    "config_invalid": Kind(422, "invalid_request_error"),
    "internal": Kind(500, "internal_error"),
}

# HTTP status → Anthropic's name for it; what is not here is an api_error
ANTHROPIC: Final[dict[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

# code → the last part of its name on the bus; several codes may share one
BUS_NAMES: Final[dict[str, str]] = {
    "bad_request": "InvalidArgument",
    "unauthorized": "Unauthorized",
    "host_not_allowed": "HostNotAllowed",
    "origin_not_allowed": "OriginNotAllowed",
    "not_found": "NotFound",
    "model_not_found": "NoSuchModel",
    "not_supported_by_model": "NotSupportedByModel",
    "method_not_allowed": "NotSupported",
    "request_timeout": "RequestTimeout",
    "body_too_large": "LimitsExceeded",
    "unsupported_media_type": "InvalidArgument",
    "queue_full": "LimitsExceeded",
    "queue_timeout": "LoadTimeout",
    "shutting_down": "Draining",
    "model_failed": "ModelFailed",
    "model_backing_off": "ModelBackingOff",
    "model_unloaded": "ModelUnloaded",
    "model_out_of_memory": "ChildOom",
    "does_not_fit": "NotEnoughMemory",
    "memory_in_use": "MemoryInUse",
    "yielded": "Yielded",
    "model_stuck": "ModelStuck",
    "device_quarantined": "DeviceQuarantined",
    "too_many_connections": "LimitsExceeded",
    "upstream_failed": "UpstreamFailed",
    "upstream_timeout": "UpstreamTimeout",
    "toolbox_not_found": "NoSuchToolbox",
    "toolbox_busy": "ToolboxBusy",
    "toolbox_pinned": "ToolboxPinned",
    "toolbox_failed": "ToolboxFailed",
    "device_not_found": "NoSuchDevice",
    "job_not_found": "NoSuchJob",
    "pin_not_found": "NoSuchPin",
    "pin_conflict": "PinConflict",
    "too_many_pins": "LimitsExceeded",
    "not_supported": "NotSupported",
    "too_many_calls": "LimitsExceeded",
    "busy": "Busy",
    "config_invalid": "ConfigInvalid",
    "internal": "Failed",
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

    def anthropic(self) -> dict[str, Any]:
        """The body that Anthropic's clients parse: {"type": "error", "error": {type, message, code}}."""
        kind = ANTHROPIC.get(self.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message, "code": self.code, **self.fields}}


class InternalError(AssertionError):
    """A bug in accelerd itself: an event that the lifecycle table does not allow, a broken invariant."""
