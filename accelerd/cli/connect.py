"""accelctl's connection to the daemon: blocking HTTP over the control socket, as docs/control.md describes it.

Where systemd listens on the socket, connecting starts accelerd. Standard library only, so that `accelctl status` starts
fast. Turns every transport error into a Failure that says what to do; must never retry by itself, nor interpret an
answer beyond its shape.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from accelerd.base import names
from accelerd.cli.failure import ExitStatus, Failure

ANSWER_TIMEOUT = 15.0  # seconds for an answer from memory
EVENT_TIMEOUT = 60.0  # seconds between two progress events, which come four times a second
START_COMMANDS = f"systemctl --user start {names.PROGRAM}, or run {names.PROGRAM} in another terminal"

EXITS = {
    "config_invalid": ExitStatus.CONFIG_INVALID,
    "model_not_found": ExitStatus.NO_SUCH_MODEL,
    "toolbox_not_found": ExitStatus.NO_SUCH_MODEL,
    "shutting_down": ExitStatus.UNREACHABLE,
}


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class DaemonClient:
    """accelerd behind one control socket. Every call opens a connection of its own; all raise Failure."""

    def __init__(
        self,
        path: Path,
        *,
        answer_timeout: float = ANSWER_TIMEOUT,
        event_timeout: float = EVENT_TIMEOUT,
        sudo_user: str = "",
    ) -> None:
        """Timeouts in seconds: of one answer, and between two events of a long operation. `sudo_user`: see below."""
        self.path = path
        self._start_hint = start_hint(sudo_user)
        self._answer_timeout = answer_timeout
        self._event_timeout = event_timeout

    def get(self, route: str, /, *, timeout: float | None = None, **query: Any) -> dict[str, Any]:
        """The JSON object of a control route ("status"). `timeout` in seconds, for routes that need longer."""
        return self._json("GET", route, query, timeout)

    def post(self, route: str, *, timeout: float | None = None, **query: Any) -> dict[str, Any]:
        answer = self._json("POST", route, query, timeout)
        return {key: value for key, value in answer.items() if key not in ("event", "elapsed")}

    def events(self, route: str, **query: Any) -> Iterator[dict[str, Any]]:
        """The NDJSON events of a long operation, each as it arrives; the last one is its result. An error is raised."""
        with self.open("POST", control(route, query), timeout=self._event_timeout) as response:
            for line in self.stream(response):
                if not line.strip():
                    continue
                event = decode(line)
                if event.get("event") == "error":
                    raise failure_of(event.get("error") or {})
                yield event
                if event.get("event") != "progress":
                    return
        raise broken("accelerd ended before the operation was finished")

    @contextmanager
    def watch(self, route: str) -> Iterator[Iterator[dict[str, Any]]]:
        """The NDJSON events of a GET route for as long as the daemon sends, from now on; ends when the daemon does."""
        with self.open("GET", control(route, {}), timeout=None) as response:
            yield (decode(line) for line in self.stream(response) if line.strip())

    def lines(self, route: str, *, follow: bool, **query: Any) -> Iterator[str]:
        """The lines of a text/plain route; with `follow` for as long as the daemon sends."""
        query |= {"follow": 1} if follow else {}
        with self.open("GET", control(route, query), timeout=None if follow else self._answer_timeout) as response:
            for line in self.stream(response):
                yield line.decode("utf-8", "replace").rstrip("\r\n")

    @contextmanager
    def open(
        self, method: str, target: str, *, timeout: float | None, body: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """A response with status 200, unread. Any other status is raised as the Failure its body describes."""
        connection = UnixConnection(self.path, timeout)
        headers = {"Accept": "*/*"} | ({"Content-Type": "application/json"} if body is not None else {})
        try:
            with self._transport_errors():
                connection.request(method, target, body=body, headers=headers)
                response = connection.getresponse()
                if response.status != 200:
                    raise refusal(response.status, response.read())
            yield response
        finally:
            connection.close()

    def _json(self, method: str, route: str, query: dict[str, Any], timeout: float | None) -> dict[str, Any]:
        within = timeout or self._answer_timeout
        with self.open(method, control(route, query), timeout=within) as response, self._transport_errors():
            return decode(response.read())

    def stream(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """The lines of an open response, each as it arrives."""
        # Not response.readline(): it takes a connection that broke for the end of the text.
        rest = b""
        while True:
            with self._transport_errors():
                piece = response.read1(65536)
            if not piece:
                break
            *lines, rest = (rest + piece).split(b"\n")
            yield from (line + b"\n" for line in lines)
        if rest:
            yield rest

    @contextmanager
    def _transport_errors(self) -> Iterator[None]:
        """Say in one line what a broken connection means."""
        try:
            yield
        except (FileNotFoundError, ConnectionRefusedError) as error:
            text = f"accelerd is not running (nothing listens on {self.path})"
            raise unreachable(text, "not_running", self._start_hint) from error
        except PermissionError as error:
            text = f"cannot open {self.path}: it belongs to another user"
            raise unreachable(text, "not_permitted", "run accelctl as the user who runs accelerd") from error
        except TimeoutError as error:
            hint = f"see: systemctl --user status {names.PROGRAM}"
            raise unreachable("accelerd did not answer in time", "no_answer", hint) from error
        except (http.client.HTTPException, ConnectionError) as error:
            raise broken() from error
        except OSError as error:  # a path that is too long or is no socket
            text = f"cannot open {self.path}: {error.strerror or error}"
            raise unreachable(text, "not_reachable", "check --socket and $ACCELERD_SOCKET") from error


def start_hint(sudo_user: str) -> str:
    """What to do when accelerd does not run. `sudo_user`: who has called sudo, "" if nobody has."""
    if sudo_user:
        return f"accelerd is a service of its user: run accelctl without sudo, as {sudo_user}"
    return f"start it: {START_COMMANDS}"


def unreachable(message: str, code: str, hint: str) -> Failure:
    return Failure(message, exit=ExitStatus.UNREACHABLE, code=code, hint=hint)


def broken(message: str = "the connection to accelerd broke") -> Failure:
    return unreachable(message, "connection_lost", f"see: journalctl --user -u {names.PROGRAM} -n 30")


def control(route: str, query: dict[str, Any]) -> str:
    """The request target of a control route; None and False are left out."""
    given = {key: str(value) for key, value in query.items() if value is not None and value is not False}
    return f"{names.CONTROL_PREFIX}/{route}" + (f"?{urlencode(given)}" if given else "")


def decode(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)  # not from_json, which imports msgspec
    except (ValueError, RecursionError) as error:
        raise Failure("accelerd sent an answer that is not JSON", code="bad_answer") from error
    if not isinstance(value, dict):
        raise Failure("accelerd sent JSON that is not an object", code="bad_answer")
    return value


def refusal(status: int, body: bytes) -> Failure:
    try:
        return failure_of(json.loads(body)["error"])
    except (ValueError, RecursionError, KeyError, TypeError):
        return Failure(f"accelerd answered with HTTP status {status}", code="bad_answer")


def failure_of(error: Any) -> Failure:
    """An OpenAI-shaped error object as a Failure with the exit status of its code; of anything else the text."""
    if not isinstance(error, dict):
        error = {"message": str(error)}
    code = str(error.get("code") or "failed")
    known = {"message", "code", "type", "param", "tail"}
    return Failure(
        str(error.get("message") or code),
        exit=EXITS.get(code, ExitStatus.FAILED),
        code=code,
        tail=[str(line) for line in error.get("tail") or ()],
        fields={key: value for key, value in error.items() if key not in known},
    )
