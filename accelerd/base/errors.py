"""The error type of the program: a code, a message that says what to do, and its form at each boundary.

A code maps to an HTTP status, an OpenAI `error.type` and a D-Bus error name; the journal field is the code itself. Uses
no HTTP or D-Bus library.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple


class ErrorKind(NamedTuple):
    status: int  # HTTP
    bus_name: str  # last part of the D-Bus error name; several codes can share one
    retryable: bool = False  # can the same request succeed later without a change by the user?

    @property
    def type(self) -> str:
        return OPENAI.get(self.status, "invalid_request_error")


KINDS: Final[dict[str, ErrorKind]] = {
    # the client's request
    "bad_request": ErrorKind(400, "InvalidArgument"),
    "unauthorized": ErrorKind(401, "Unauthorized"),
    "host_not_allowed": ErrorKind(403, "HostNotAllowed"),
    "origin_not_allowed": ErrorKind(403, "OriginNotAllowed"),
    "control_only": ErrorKind(403, "NotSupported"),  # asked for on the TCP port
    "not_found": ErrorKind(404, "NotFound"),
    "model_not_found": ErrorKind(404, "NoSuchModel"),
    "not_supported_by_model": ErrorKind(400, "NotSupportedByModel"),  # or by its engine; another model may support it
    "context_length_exceeded": ErrorKind(400, "NotSupportedByModel"),  # another model may take more
    "method_not_allowed": ErrorKind(405, "NotSupported"),
    "http_version_not_supported": ErrorKind(505, "NotSupported"),
    "transfer_encoding_not_supported": ErrorKind(501, "NotSupported"),
    "request_timeout": ErrorKind(408, "RequestTimeout", True),
    "body_too_large": ErrorKind(413, "LimitsExceeded"),
    "unsupported_media_type": ErrorKind(415, "InvalidArgument"),
    "expectation_failed": ErrorKind(417, "NotSupported"),
    # waiting for a model
    "queue_full": ErrorKind(429, "LimitsExceeded", True),
    "queue_timeout": ErrorKind(503, "LoadTimeout", True),
    "shutting_down": ErrorKind(503, "ShuttingDown", True),
    "model_failed": ErrorKind(503, "ModelFailed"),  # cannot start until the user changes something
    "model_backing_off": ErrorKind(503, "ModelBackingOff", True),  # failed recently; will be tried again
    "model_unloaded": ErrorKind(503, "ModelUnloaded", True),  # unloaded by a user while the request waited
    "model_out_of_memory": ErrorKind(503, "ModelOutOfMemory"),  # killed by the kernel because memory ran out
    "does_not_fit": ErrorKind(503, "NotEnoughMemory"),
    "memory_in_use": ErrorKind(503, "MemoryInUse", True),  # it would fit, but other programs use the memory
    "yielded": ErrorKind(503, "Yielded", True),  # the user or a game needs the memory
    "model_stuck": ErrorKind(503, "ModelStuck", True),  # one of its processes cannot be stopped
    "device_quarantined": ErrorKind(503, "DeviceQuarantined", True),  # such a process may still use its device
    "too_many_connections": ErrorKind(503, "LimitsExceeded", True),
    "too_many_bodies": ErrorKind(503, "LimitsExceeded", True),  # of other requests, which are being answered
    # the engine
    "upstream_failed": ErrorKind(502, "UpstreamFailed", True),
    "upstream_timeout": ErrorKind(504, "UpstreamTimeout", True),
    # downloads
    "hub_not_found": ErrorKind(404, "HubNotFound"),  # the hub has no such repository, quantization or file
    "model_gated": ErrorKind(403, "ModelGated"),  # its terms must be accepted, or a token is missing
    "hub_offline": ErrorKind(503, "HubOffline", True),  # the hub cannot be reached, or HF_HUB_OFFLINE is set
    "disk_full": ErrorKind(507, "DiskFull"),
    "download_failed": ErrorKind(502, "DownloadFailed", True),
    # toolboxes
    "toolbox_not_found": ErrorKind(404, "NoSuchToolbox"),
    "toolbox_busy": ErrorKind(409, "ToolboxBusy", True),  # in use, or a refresh is already running
    "toolbox_pinned": ErrorKind(409, "ToolboxPinned"),
    "toolbox_failed": ErrorKind(502, "ToolboxFailed"),  # podman, toolbox or the new image failed; changes are undone
    # jobs, pins, the session bus
    "device_not_found": ErrorKind(404, "NoSuchDevice"),
    "job_not_found": ErrorKind(404, "NoSuchJob"),
    "pin_not_found": ErrorKind(404, "NoSuchPin"),  # already ended, or owned by another client
    "pin_conflict": ErrorKind(409, "PinConflict"),  # the models that are already pinned leave too little memory
    "too_many_pins": ErrorKind(429, "LimitsExceeded"),
    "canceled": ErrorKind(409, "Canceled", True),  # a job that a client canceled
    "not_supported": ErrorKind(405, "NotSupported"),
    "too_many_calls": ErrorKind(429, "LimitsExceeded", True),  # in progress for one client or for all clients
    # control
    "busy": ErrorKind(409, "Busy", True),  # conflicts with a running operation
    "config_invalid": ErrorKind(422, "ConfigInvalid"),
    "internal": ErrorKind(500, "Failed"),
}

# HTTP status → OpenAI's error type; all others are invalid_request_error
OPENAI: Final[dict[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "internal_error",
    502: "upstream_error",
    503: "service_unavailable_error",
    504: "upstream_error",
}

# HTTP status → Anthropic's error type; all others are api_error
ANTHROPIC: Final[dict[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    417: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

BUS_NAMES: Final = {code: kind.bus_name for code, kind in KINDS.items()}


class AccelError(Exception):
    """An error that is shown to a user or a client.

    `problem` starts in lower case and says what is wrong, `hint` what to do; `message` is both in one line.
    `retry_after` is in seconds. `fields` are additional JSON-ready details (never prompts, keys or environment).
    """

    def __init__(
        self,
        code: str,
        problem: str,
        *,
        hint: str = "",
        retry_after: float | None = None,
        param: str | None = None,
        **fields: Any,
    ) -> None:
        self.problem = problem
        self.hint = hint
        self.message = f"{problem}; {hint}" if hint else problem
        super().__init__(self.message)
        self.kind = KINDS[code]
        self.code = code
        self.retry_after = retry_after
        self.param = param
        self.fields = fields

    def bare(self) -> AccelError:
        """Itself, to be kept: without the frames where it was raised, which hold whatever was at work there."""
        self.__context__ = self.__cause__ = None
        return self.with_traceback(None)

    @property
    def status(self) -> int:
        return self.kind.status

    def openai(self) -> dict[str, Any]:
        """The body for OpenAI's clients: {"error": {message, type, param, code, …fields}}."""
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
        """The body for Anthropic's clients: {"type": "error", "error": {type, message, code}}."""
        kind = anthropic_type(self.status)
        return {"type": "error", "error": {"type": kind, "message": self.message, "code": self.code, **self.fields}}


def anthropic_type(status: int) -> str:
    """Anthropic's type of an error with this HTTP status."""
    return ANTHROPIC.get(status, "api_error")


class InternalError(AssertionError):
    """A bug in accelerd: an event that the lifecycle table does not allow, or a violated invariant."""
