"""The daemon over the session bus: what accelerd/cli/client.py asks of the control socket, asked of org.accelerd1.

Looks are Manager.Query; what takes long is a job that is followed by its Event and ends with Wait. Owns which route is
which method, and what an error of the bus means. What the bus does not carry goes over the socket: requests to models
(chat), and output that is followed.
"""

from __future__ import annotations

import http.client
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from accelerd.base import names
from accelerd.base.errors import BUS_NAMES
from accelerd.cli.bus_link import ABSENT, BUS, ERROR, LATE, LOST, Link, LinkError, Pending, Signal
from accelerd.cli.client import (
    ANSWER_TIMEOUT,
    EVENT_TIMEOUT,
    EXITS,
    Client,
    Way,
    broken,
    decode,
    failure_of,
    gone_meanwhile,
    no_answer,
    not_running,
)
from accelerd.cli.failure import Exit, Failure

OBJECT_MANAGER: Final = "org.freedesktop.DBus.ObjectManager"
GIVE_UP_WITHIN: Final = 2.0  # s for a Cancel: whoever pressed Ctrl-C waits
# Of several codes with one name the first, which is the likeliest here but for this one.
CODES: Final = {name: code for code, name in reversed(BUS_NAMES.items())} | {"LimitsExceeded": "too_many_calls"}
Query = Mapping[str, Any]


@dataclass(frozen=True)
class Errand:
    """A route that is a job. `done`: its last event's name; `ends`: is it given up when nobody follows it any more?"""

    method: str
    signature: str
    arguments: Callable[[Query], tuple[Any, ...]]
    done: str
    ends: bool = False


def _options(query: Query, *flags: str) -> dict[str, Any]:
    """Those of these that are set, as the bus wants them."""
    from gi.repository import GLib

    return {key: GLib.Variant("b", True) for key in flags if query.get(key)}


def _yield(query: Query) -> tuple[Any, ...]:
    from gi.repository import GLib

    seconds = query.get("for")
    span = {} if seconds is None else {"for-usec": GLib.Variant("t", max(1, round(float(seconds) * 1e6)))}
    return ({**span, **_options(query, "now", "all")},)


ERRANDS: Final[dict[str, Errand]] = {
    "load": Errand("LoadModel", "(sa{sv})", lambda q: (q["model"], {}), "ready"),
    "unload": Errand(
        "UnloadModel", "(ssa{sv})", lambda q: (q["model"], "now" if q.get("force") else "drain", {}), "stopped"
    ),
    "yield": Errand("YieldMemory", "(a{sv})", _yield, "yielded"),
    "resume": Errand("Resume", "(a{sv})", lambda q: ({},), "resumed"),
    "reload": Errand("Reload", "(a{sv})", lambda q: ({},), "reloaded"),
    "tune": Errand("Tune", "(sa{sv})", lambda q: (q["model"], _options(q, "quick", "force")), "done", ends=True),
    "toolbox/refresh": Errand(
        "RefreshToolbox", "(sa{sv})", lambda q: (q["name"], _options(q, "force")), "refreshed", ends=True
    ),
}


class BusClient:
    """One daemon, over a link that is connected. All raise Failure."""

    def __init__(
        self,
        link: Link,
        socket: Client,
        *,
        answer_timeout: float = ANSWER_TIMEOUT,
        event_timeout: float = EVENT_TIMEOUT,
        why: str = "",
    ) -> None:
        """`socket`: for what the bus does not carry; the rest as for Client."""
        self._link = link
        self._socket = socket
        self._answer_timeout = answer_timeout
        self._event_timeout = event_timeout
        self._why = why
        self._followed: dict[str, Callable[[], None]] = {}  # jobs under way: what is done when nobody follows them
        self._posts: dict[str, Callable[[Query, float], dict[str, Any]]] = {
            "reset": self._reset,
            "memory/forget": self._forget,
            "toolbox/pin": self._pin,
            "toolbox/unpin": self._unpin,
        }

    @property
    def path(self) -> Path:
        return self._socket.path

    def way(self) -> Way:
        return Way("bus", self._why)

    def link(self) -> Link | None:
        return self._link

    def get(self, route: str, *, patience: float | None = None, **query: Any) -> dict[str, Any]:
        given = {key: str(value) for key, value in query.items() if value is not None and value is not False}
        return decode(self._manager("Query", "(sa{ss})", route, given, within=patience)[0].encode())

    def post(self, route: str, *, patience: float | None = None, **query: Any) -> dict[str, Any]:
        if route in self._posts:
            return self._posts[route](query, patience or self._answer_timeout)
        last = deque(self.events(route, **query), maxlen=1).pop()
        if last.get("event") == "error":
            raise failure_of(last.get("error") or {})
        return {key: value for key, value in last.items() if key not in ("event", "elapsed")}

    def lines(self, route: str, *, follow: bool, **query: Any) -> Iterator[str]:
        if follow:
            return self._socket.lines(route, follow=True, **query)
        return iter([str(line) for line in self.get(route, **query).get("lines") or ()])

    def open(
        self, method: str, target: str, *, timeout: float | None, body: bytes | None = None
    ) -> AbstractContextManager[http.client.HTTPResponse]:
        """A request to a model: over the socket."""
        return self._socket.open(method, target, timeout=timeout, body=body)

    def stream(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        return self._socket.stream(response)

    def close(self) -> None:
        """What is given up with this program is given up now."""
        for leave in list(self._followed.values()):
            leave()
        self._link.close()

    # --- jobs -------------------------------------------------------------------------------------------------

    def events(self, route: str, **query: Any) -> Iterator[dict[str, Any]]:
        """The events of a job, the last one never "progress". Whoever stops listening leaves the job alone, or ends it
        where that is what its kind does."""
        errand = ERRANDS[route]
        heard: deque[Signal] = deque()
        gone: list[Signal] = []
        with ExitStack() as stack:
            hear = self._link.hearing
            stack.enter_context(hear(heard.append, names.BUS_NAME, f"{names.BUS_JOB}.Event"))
            stack.enter_context(hear(heard.append, names.BUS_NAME, f"{OBJECT_MANAGER}.InterfacesAdded"))
            stack.enter_context(hear(gone.append, BUS, f"{BUS}.NameOwnerChanged", names.BUS_NAME))
            job = str(self._manager(errand.method, errand.signature, *errand.arguments(query))[0])
            ours = any(signal.member == "InterfacesAdded" and signal.values[0] == job for signal in heard)
            waiting = [ours and route == "load"]  # a load that has begun goes on
            self._followed[job] = lambda: self._leave(job) if errand.ends or waiting[0] else self._forsake(job)
            try:
                for event in self._follow(job, heard, gone, query, errand):
                    waiting[0] = ours and route == "load" and event.get("state") == "queued"
                    if event.get("event") != "progress":
                        self._forsake(job)
                    yield event
                    if event.get("event") != "progress":
                        return
            finally:
                if job in self._followed:
                    self._followed[job]()

    def _follow(
        self, job: str, heard: deque[Signal], gone: list[Signal], query: Query, errand: Errand
    ) -> Iterator[dict[str, Any]]:
        """Event after event, and at last the one that says how it ended."""
        end = self._link.begin(names.BUS_NAME, job, f"{names.BUS_JOB}.Wait", "()")
        while True:
            some = self._link.wait(lambda: bool(heard or gone or end.over or self._link.closed), self._event_timeout)
            while heard:
                signal = heard.popleft()
                if signal.path == job and signal.member == "Event":
                    yield decode(str(signal.values[0]).encode())
            if end.over:
                yield self._ending(job, end, query, errand)
            elif gone or self._link.closed:
                raise gone_meanwhile()
            elif not some:
                raise no_answer()

    def _ending(self, job: str, end: Pending, query: Query, errand: Errand) -> dict[str, Any]:
        """The last event of a job that told none itself, or told it before anybody listened."""
        try:
            result = str(end.result()[0])
        except LinkError as error:
            if error.name in LOST or error.name in ABSENT:
                raise gone_meanwhile() from None
            return {"event": "error", "error": failure(error).json()["error"]}
        if result == "done":
            return {"event": errand.done, **({"model": query["model"]} if "model" in query else {})}
        text = "something else was wanted meanwhile" if result == "superseded" else "it was canceled"
        with suppress(LinkError):
            said = self._link.get(names.BUS_NAME, job, names.BUS_JOB, "ErrorMessage", self._answer_timeout)
            text = str(said) or text
        return {"event": "error", "error": {"code": result, "message": text}}

    def _leave(self, job: str) -> None:
        """Nobody wants it any more."""
        self._forsake(job)
        with suppress(LinkError, KeyboardInterrupt):  # it has ended, or the daemon has: no more is wanted of it
            self._link.call(names.BUS_NAME, job, f"{names.BUS_JOB}.Cancel", "()", within=GIVE_UP_WITHIN)

    def _forsake(self, job: str) -> None:
        self._followed.pop(job, None)

    # --- what is done at once ---------------------------------------------------------------------------------

    def _reset(self, query: Query, within: float) -> dict[str, Any]:
        self._manager("ResetFailed", "(s)", query["model"], within=within)
        model = self._manager("GetModel", "(s)", query["model"], within=within)[0]
        try:
            return {"state": self._link.get(names.BUS_NAME, model, names.BUS_MODEL, "State", within)}
        except LinkError as error:
            raise failure(error) from None

    def _forget(self, query: Query, within: float) -> dict[str, Any]:
        name = "" if query.get("all") else query["model"]
        return {"forgotten": self._manager("ForgetMemory", "(s)", name, within=within)[0]}

    def _pin(self, query: Query, within: float) -> dict[str, Any]:
        name = query["name"]
        pinned = self._manager("PinToolbox", "(s)", name, within=within)[0]
        there = self.get("toolboxes", patience=within).get("toolboxes") or ()
        image = next((box["image"] for box in there if box["name"] == name), "")
        return {"toolbox": name, "image": image, "pinned": pinned}

    def _unpin(self, query: Query, within: float) -> dict[str, Any]:
        was = self._manager("UnpinToolbox", "(s)", query["name"], within=within)[0]
        return {"toolbox": query["name"], "was": was or None, "pinned": None}

    def _manager(self, method: str, signature: str, *values: Any, within: float | None = None) -> tuple[Any, ...]:
        try:
            return self._link.call(
                names.BUS_NAME, names.BUS_PATH, f"{names.BUS_MANAGER}.{method}", signature, *values,
                within=within or self._answer_timeout,
            )  # fmt: skip
        except LinkError as error:
            raise failure(error) from None


def failure(error: LinkError) -> Failure:
    """What an error of the bus means for a person."""
    if error.name in ABSENT:
        return not_running(f"nobody has the name {names.BUS_NAME} on the session bus")
    if error.name in LOST:
        return broken()
    if error.name == LATE:
        return no_answer()
    if error.name.startswith(names.BUS_ERROR):
        code = CODES.get(error.name.removeprefix(names.BUS_ERROR), "failed")
        return Failure(error.message, exit=EXITS.get(code, Exit.FAILED), code=code)
    if error.name.startswith(ERROR + "Unknown"):
        return Failure(
            "the accelerd that runs does not know this: it is another version than accelctl", code="not_found",
            hint=f"systemctl --user restart {names.PROGRAM}",
        )  # fmt: skip
    return Failure(error.message)
