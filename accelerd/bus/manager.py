"""The Manager on the bus: its methods ask the scheduler, the jobs and the looks that the control socket has too.

What takes long is a job at once; what is wrong is refused before anything happens. Keeps nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from accelerd.base.errors import AccelError
from accelerd.base.names import BUS_NO_OBJECT
from accelerd.bus.launcher import Launcher
from accelerd.bus.options import flags, options
from accelerd.bus.paths import device_path, job_path, model_path
from accelerd.bus.port import Call, Variant
from accelerd.config.problems import Problem
from accelerd.control.jobs import Job
from accelerd.control.operations import Answer, Query
from accelerd.scheduler.record import Snapshot

TOPICS: Final[dict[str, frozenset[str]]] = {  # what may be asked, and with which arguments
    "status": frozenset(),
    "explain": frozenset({"model"}),
    "memory": frozenset(),
    "memory/learned": frozenset(),
    "fit": frozenset({"model"}),
    "devices": frozenset(),
    "toolboxes": frozenset(),
    "logs": frozenset({"model", "lines"}),
}
LONGEST_YIELD: Final = 366 * 86400 * 10**6  # µs
TEXT_MOST: Final = 256  # characters of a reason, an application's id


class Models(Protocol):
    """The scheduler, as far as this room asks it."""

    def snapshot(self, name: str) -> Snapshot: ...
    def snapshots(self) -> list[Snapshot]: ...


class Pins(Protocol):
    """Who keeps models."""

    def pin(self, model: str, reason: str, application_id: str, owner: str, *, hold: bool) -> int:
        """A cookie. AccelError."""
        ...

    def unpin(self, cookie: int, owner: str) -> None:
        """AccelError pin_not_found."""
        ...

    def owner_gone(self, owner: str) -> None: ...


class Manager:
    """See the module's text."""

    def __init__(
        self,
        launcher: Launcher,
        models: Models,
        pins: Pins,
        answers: Mapping[str, Answer],
        actions: Mapping[str, Answer],
        devices: Callable[[], Sequence[str]],
        problems: Callable[[], Awaitable[Sequence[Problem]]],
        check_evict: Callable[[Query], object],
        watch: Callable[[str, Callable[[str], None]], None],
    ) -> None:
        """`devices()`: ids; `problems()`: of the configuration on disk; `check_evict` raises where it cannot be done;
        `watch(client, gone)`: see Bus."""
        self._launcher = launcher
        self._models = models
        self._pins = pins
        self._answers = answers
        self._actions = actions
        self._devices = devices
        self._problems = problems
        self._check_evict = check_evict
        self._watch = watch
        self._methods: dict[str, Callable[..., Awaitable[tuple[Any, ...]]]] = {
            "GetModel": self._get_model,
            "GetDevice": self._get_device,
            "LoadModel": self._load_model,
            "UnloadModel": self._unload_model,
            "Evict": self._evict,
            "YieldMemory": self._yield_memory,
            "Resume": self._resume,
            "CheckConfig": self._check_config,
            "Reload": self._reload,
            "ResetFailed": self._reset_failed,
            "ForgetMemory": self._forget_memory,
            "Tune": self._tune,
            "RefreshToolbox": self._refresh_toolbox,
            "PinToolbox": self._pin_toolbox,
            "UnpinToolbox": self._unpin_toolbox,
            "Query": self._query,
        }

    async def handler(self, call: Call) -> tuple[Any, ...]:
        if call.method in ("PinModel", "HoldModel"):
            return await self._pin(call.sender, call.method == "HoldModel", *call.args)
        if call.method in ("Unpin", "Release"):
            self._pins.unpin(call.args[0], call.sender)
            return ()
        return await self._methods[call.method](*call.args)

    # --- for models and devices as well -----------------------------------------------------------------------

    def load(self, name: str, given: Mapping[str, Any]) -> Job:
        """A job that has the model loaded, or the one that does so already. AccelError."""
        name = self._name(name)
        found = options(given, allow_evict=bool)
        evict = "1" if found.get("allow-evict", True) else "0"
        return self._launcher.start("load", name, "load", {"model": name, "evict": evict}, key=f"load {name}")

    def unload(self, name: str, mode: str, given: Mapping[str, Any]) -> Job:
        name = self._name(name)
        options(given)
        if mode not in ("drain", "now"):
            raise AccelError("bad_request", f"the mode must be drain or now, not {mode[:20]!r}", param="mode")
        query = {"model": name, "force": "1" if mode == "now" else "0"}
        return self._launcher.start("unload", name, "unload", query, key=f"unload {mode} {name}")

    def rescan(self) -> Job:
        return self._launcher.start("rescan", "", "rescan", {}, key="rescan")

    async def reset(self, name: str) -> None:
        """Forget the failures of a model. AccelError."""
        await self._actions["reset"]({"model": name})

    # --- finding ----------------------------------------------------------------------------------------------

    async def _get_model(self, name: str) -> tuple[str]:
        return (model_path(self._name(name)),)

    async def _get_device(self, id: str) -> tuple[str]:
        if id not in self._devices():
            raise AccelError("device_not_found", f"there is no device {id[:60]!r}", param="id")
        return (device_path(id),)

    def _name(self, name: str) -> str:
        """As configured. AccelError model_not_found."""
        return self._models.snapshot(name).spec.name

    # --- jobs -------------------------------------------------------------------------------------------------

    async def _load_model(self, name: str, given: Mapping[str, Any]) -> tuple[str]:
        return _path(self.load(name, given))

    async def _unload_model(self, name: str, mode: str, given: Mapping[str, Any]) -> tuple[str]:
        return _path(self.unload(name, mode, given))

    async def _evict(self, size: int, device: str, given: Mapping[str, Any]) -> tuple[str]:
        query = flags(given, "busy") | {"bytes": str(size)}
        id = ""
        if device != BUS_NO_OBJECT:
            id = next((id for id in self._devices() if device_path(id) == device), "")
            if not id:
                raise AccelError("device_not_found", f"there is no device {device[:80]}", param="device")
            query["device"] = id
        self._check_evict(query)
        return _path(self._launcher.start("evict", id, "evict", query))

    async def _yield_memory(self, given: Mapping[str, Any]) -> tuple[str]:
        found = options(given, for_usec=int, now=bool, all=bool)
        query = {key: "1" for key in ("now", "all") if found.get(key)}
        if (time := found.get("for-usec")) is not None:
            if not 0 < time <= LONGEST_YIELD:
                text = "for-usec must be more than 0 microseconds and at most a year"
                raise AccelError("bad_request", text, param="for-usec")
            query["for"] = repr(time / 1e6)
        return _path(self._launcher.start("yield", "", "yield", query))

    async def _resume(self, given: Mapping[str, Any]) -> tuple[str]:
        options(given)
        return _path(self._launcher.start("resume", "", "resume", {}))

    async def _reload(self, given: Mapping[str, Any]) -> tuple[str]:
        options(given)
        return _path(self._launcher.start("reload", "", "reload", {}))

    async def _tune(self, name: str, given: Mapping[str, Any]) -> tuple[str]:
        name = self._name(name)
        query = flags(given, "quick", "force") | {"model": name}
        return _path(self._launcher.start("tune", name, "tune", query))

    async def _refresh_toolbox(self, name: str, given: Mapping[str, Any]) -> tuple[str]:
        query = flags(given, "force") | {"name": name}
        return _path(self._launcher.start("refresh", name, "toolbox/refresh", query))

    # --- at once ----------------------------------------------------------------------------------------------

    async def _pin(
        self, sender: str, hold: bool, name: str, reason: str, application_id: str, given: Mapping[str, Any]
    ) -> tuple[int]:
        options(given)
        self._launcher.refuse_when_draining()
        name = self._name(name)
        if not reason.strip():
            raise AccelError("bad_request", "a reason must be given, for people to read", param="reason")
        for param, text in (("reason", reason), ("application_id", application_id)):
            if len(text) > TEXT_MOST or not text.isprintable():
                what = f"{param} must be one printable line of at most {TEXT_MOST} characters"
                raise AccelError("bad_request", what, param=param)
        cookie = self._pins.pin(name, reason, application_id, sender, hold=hold)
        self._watch(sender, self._pins.owner_gone)
        return (cookie,)

    async def _check_config(self) -> tuple[list[dict[str, Any]]]:
        return ([_problem(problem) for problem in await self._problems()],)

    async def _reset_failed(self, name: str) -> tuple[()]:
        names = [self._name(name)] if name else [snapshot.spec.name for snapshot in self._models.snapshots()]
        for one in names:
            await self.reset(one)
        return ()

    async def _forget_memory(self, name: str) -> tuple[int]:
        found = await self._actions["memory/forget"]({"model": name} if name else {"all": "1"})
        return (found["forgotten"],)

    async def _pin_toolbox(self, name: str) -> tuple[str]:
        return ((await self._actions["toolbox/pin"]({"name": name}))["pinned"],)

    async def _unpin_toolbox(self, name: str) -> tuple[str]:
        return ((await self._actions["toolbox/unpin"]({"name": name}))["was"] or "",)

    async def _query(self, topic: str, arguments: Mapping[str, str]) -> tuple[str]:
        known = TOPICS.get(topic)
        if known is None:
            raise AccelError("not_found", f"there is no topic {topic[:60]!r}: there are {', '.join(TOPICS)}")
        for key in arguments:
            if key not in known:
                raise AccelError("bad_request", f"{topic} has no argument {key[:60]!r}", param=key)
        return (msgspec.json.encode(await self._answers[topic](dict(arguments))).decode(),)


def _path(job: Job) -> tuple[str]:
    return (job_path(job.id),)


def _problem(problem: Problem) -> dict[str, Any]:
    found: dict[str, Any] = {
        "severity": problem.severity,
        "message": problem.message,
        "file": problem.file,
        "key": problem.key,
    }
    for key, value in (("line", problem.line), ("column", problem.column)):
        if value is not None:
            found[key] = Variant("u", value)
    return found
