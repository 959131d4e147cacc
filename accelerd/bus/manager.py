"""The methods of the Manager, the models and the devices on the bus: each is an operation of the control API.

Owns which method is which operation and how arguments and answers are translated. What an operation does not accept is
refused by the operation. Keeps only which clients have made claims.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from accelerd.base.errors import AccelError
from accelerd.base.names import BUS_NO_OBJECT
from accelerd.bus.paths import device_path, job_path, model_path
from accelerd.config.problems import Problem
from accelerd.control.api import ControlApi
from accelerd.devices.model import Device
from accelerd.system.dbus.port import Call, Handler, Variant

Given = dict[str, Any]  # keys of a request, as `parse` takes them
Options = Mapping[str, Any]

MODES: Final = {"drain": False, "now": True}  # of UnloadModel: whether running requests are ended


class Method(Struct, frozen=True):
    """How a method carries out an operation: its arguments as the request's, the answer as its out arguments."""

    operation: str
    given: Callable[..., Given]
    out: Callable[[Any], tuple[Any, ...]]


def _job(job: Any) -> tuple[str]:
    return (job_path(job.id),)


def _nothing(answer: Any) -> tuple[()]:
    return ()


def _merge(options: Options, **arguments: Any) -> Given:
    for key in arguments:
        if key in options:
            raise AccelError("bad_request", f"there is no option {key!r}: it is an argument", param=key)
    return {**options, **arguments}


def _one_or_all(name: str) -> Given:
    return {"model": name} if name else {"all": True}


def _unload(name: str, mode: str, options: Options) -> Given:
    if mode not in MODES:
        raise AccelError("bad_request", f"the mode must be drain or now, not {mode[:20]!r}", param="mode")
    return _merge(options, model=name, force=MODES[mode])


def _yield(options: Options) -> Given:
    """Times on the bus are microseconds."""
    given = dict(options)
    if "for" in given:
        raise AccelError("bad_request", "there is no option 'for': it is for-usec", param="for")
    if "for-usec" in given:
        microseconds = given.pop("for-usec")
        if type(microseconds) is not int:
            raise AccelError("bad_request", "for-usec must be a number of microseconds", param="for-usec")
        given["for"] = microseconds / 1e6
    return given


def _claim(name: str, reason: str, application_id: str, options: Options) -> Given:
    return _merge(options, model=name, reason=reason, **{"application-id": application_id})


def _cookie(cookie: int) -> Given:
    return {"cookie": cookie}


def _toolbox(name: str) -> Given:
    return {"name": name}


def _lines(model: str, lines: int) -> Given:
    """0: as many as usual."""
    return {"model": model, "lines": lines} if lines else {"model": model}


METHODS: Final = {
    "LoadModel": Method("load", lambda name, options: _merge(options, model=name), _job),
    "UnloadModel": Method("unload", _unload, _job),
    "Evict": Method("evict", lambda size, device, options: _merge(options, bytes=size, device=device), _job),
    "YieldMemory": Method("yield", _yield, _job),
    "Resume": Method("resume", lambda options: dict(options), _job),
    "Reload": Method("reload", lambda options: dict(options), _job),
    "Rescan": Method("rescan", lambda options: dict(options), _job),
    "Tune": Method("tune", lambda name, options: _merge(options, model=name), _job),
    "Download": Method("download", lambda source, options: _merge(options, source=source), _job),
    "RefreshToolbox": Method("toolbox/refresh", lambda name, options: _merge(options, name=name), _job),
    "CheckConfig": Method("config/check", dict, lambda answer: ([_problem(one) for one in answer.problems],)),
    "PinModel": Method("pin", _claim, lambda answer: (answer.cookie,)),
    "HoldModel": Method("hold", _claim, lambda answer: (answer.cookie,)),
    "Unpin": Method("unpin", _cookie, _nothing),
    "Release": Method("unpin", _cookie, _nothing),
    "ResetFailed": Method("reset", _one_or_all, _nothing),
    "ForgetMemory": Method("memory/forget", _one_or_all, lambda answer: (answer.forgotten,)),
    "PinToolbox": Method("toolbox/pin", _toolbox, lambda answer: (answer.pinned,)),
    "UnpinToolbox": Method("toolbox/unpin", _toolbox, lambda answer: (answer.was or "",)),
    "GetOutput": Method("logs", _lines, lambda answer: (answer.lines,)),
    "Cancel": Method("job/cancel", lambda id: {"id": id}, _nothing),
}
"""By the method's name; the Manager has all but those that belong to another object: Rescan, GetOutput, Cancel."""


class Methods:
    """Carries out calls."""

    def __init__(self, api: ControlApi, watch: Callable[[str, Callable[[str], None]], None]) -> None:
        """`watch(client, gone)`: see ObjectExporter."""
        self._api = api
        self._watch = watch
        self.claimants: set[str] = set()  # clients that have made claims

    async def manager(self, call: Call) -> tuple[Any, ...]:
        """A method of the Manager."""
        if call.method == "Query":
            return (await self._query(call.args[0], call.args[1], call.sender),)
        if call.method == "GetModel":
            return (model_path(self._api.parts.find(call.args[0]).spec.name),)
        if call.method == "GetDevice":
            id = call.args[0]
            return (device_path(self._device(lambda device: device.id == id, id)),)
        if call.method == "Evict":
            size, path, options = call.args[0], call.args[1], call.args[2]
            device = "" if path == BUS_NO_OBJECT else self._device(lambda one: device_path(one.id) == path, path)
            return await self.perform(call.sender, "Evict", size, device, options)
        return await self.perform(call.sender, call.method, *call.args)

    def of_model(self, name: str) -> Handler:
        """The methods of one model."""
        methods = {"Load": "LoadModel", "Unload": "UnloadModel", "ResetFailed": "ResetFailed", "GetOutput": "GetOutput"}

        async def handler(call: Call) -> tuple[Any, ...]:
            return await self.perform(call.sender, methods[call.method], name, *call.args)

        return handler

    async def of_device(self, call: Call) -> tuple[Any, ...]:
        """The methods of a device."""
        return await self.perform(call.sender, "Rescan", *call.args)

    def of_job(self, id: int) -> Handler:
        """The methods of one job."""

        async def handler(call: Call) -> tuple[Any, ...]:
            if call.method == "Cancel":
                return await self.perform(call.sender, "Cancel", id)
            job = await self._api.parts.jobs.wait(id)
            if job.error is not None and job.result in ("failed", "timeout"):
                raise job.error
            return (job.result,)

        return handler

    async def perform(self, sender: str, name: str, *arguments: Any) -> tuple[Any, ...]:
        """Carry out a method's operation. AccelError."""
        method = METHODS[name]
        operation = self._api.operations[method.operation]
        given = method.given(*arguments)
        if operation.kind == "job":
            return method.out(await self._api.start(operation.name, given, sender))
        answer = await self._api.call(operation.name, given, sender)
        if operation.kind == "claim":
            self.claimants.add(sender)
            self._watch(sender, self._gone)
        return method.out(answer)

    def _gone(self, sender: str) -> None:
        self.claimants.discard(sender)
        self._api.parts.pins.owner_gone(sender)

    def _device(self, wanted: Callable[[Device], bool], shown: str) -> str:
        """Its id. AccelError device_not_found."""
        for device in self._api.parts.devices.current():
            if wanted(device):
                return device.id
        raise AccelError("device_not_found", f"there is no device {shown[:80]!r}", param="device")

    async def _query(self, topic: str, arguments: Mapping[str, str], sender: str) -> str:
        operation = self._api.operations.get(topic)
        if operation is None or operation.kind != "look":
            topics = ", ".join(one.name for one in self._api.operations.values() if one.kind == "look")
            raise AccelError("not_found", f"there is no topic {topic[:60]!r}: there are {topics}", param="topic")
        answer = await self._api.call(topic, arguments, sender, text=True)
        return msgspec.json.encode(answer).decode()


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
