"""Every operation gives the same answer over HTTP, over D-Bus and, where it has a command, through accelctl.

The cases below name each operation of the registry: a new operation without a case fails. What differs from one moment
to the next (times, readings, memory in use) is compared by its presence alone.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock
from urllib.parse import urlencode

import msgspec
import pytest
from gi.repository import Gio, GLib

from accelerd.base import names
from accelerd.base.errors import BUS_NAMES, AccelError
from accelerd.base.events import EventStream
from accelerd.base.ports import SystemClock
from accelerd.bus.manager import METHODS
from accelerd.cli import run
from accelerd.control.api import ControlApi
from accelerd.control.http import METHODS as HTTP_METHODS
from accelerd.control.jobs import Jobs
from accelerd.control.operations import Operation
from accelerd.control.parts import ControlParts
from tests.bus.live import Live, environment
from tests.bus.world import Client
from tests.daemon.kit import QUICK, Site
from tests.harness import ROOT, DaemonFactory, UnixConnection, eventually
from tests.memory.gguf_maker import string, write
from tests.settled import pytest_pyfunc_call, settled
from tests.system.buses import glib_worker
from tests.system.fake_services import private_bus

__all__ = ["glib_worker", "pytest_pyfunc_call", "settled"]

MOMENTARY = frozenset({
    "uptime", "since", "idle", "ago", "elapsed", "memory_used", "free", "foreign", "foreign_users", "spilled", "stall",
    "readings", "others", "holders", "used", "created", "finished", "id", "at", "remaining", "reason", "reserve",
    "capacity", "status", "load_seconds", "cookie", "history", "last", "freed", "size", "pid", "residue", "progress",
    "memory", "jobs", "measured", "learned", "seconds",
})  # fmt: skip


def an_api() -> ControlApi:
    """The real one, over a daemon that is not there."""
    events = EventStream()
    parts = ControlParts()
    vars(parts).update({name: MagicMock() for name in ControlParts.__annotations__})
    vars(parts).update(events=events, jobs=Jobs(SystemClock(), events))
    return ControlApi(parts)


async def registry() -> dict[str, Operation]:
    return dict(an_api().operations)


OPERATIONS = asyncio.run(registry())


@dataclass(frozen=True)
class Case:
    """One question. `bus`: method, signature and arguments; None: Manager.Query. `ctl`: accelctl's words."""

    operation: str
    query: Mapping[str, Any] = field(default_factory=dict)
    bus: tuple[Any, ...] | None = None
    ctl: tuple[str, ...] | None = None
    code: str | None = None  # of the error
    before: str | None = None  # what is posted before each asking

    def __str__(self) -> str:
        return f"{self.operation}-{urlencode(self.query)}-{self.code or 'ok'}"


NONE: dict[str, Any] = {}
FLAG = GLib.Variant("b", True)

CASES = [
    Case("status", ctl=("status",)),
    Case("status", {"model": "m"}, code="bad_request"),
    *(Case("model", {"model": name}) for name in ("m", "gpt", "local/m")),
    Case("model", {"model": "nobody"}, code="model_not_found"),
    Case("model", {"model": "both"}, code="bad_request"),
    Case("model", code="bad_request"),
    *(Case("explain", {"model": name}, ctl=("explain", name), before="load?model=m")
      for name in ("m", "gpt", "local/m", "both", "short", "pair")),
    *(Case("explain", {"model": "tiered", "prompt": text}, ctl=("explain", "tiered", "--prompt", text))
      for text in ("hi", "Implement a class in Rust? Think step by step & evaluate it: 100 % sure?", "")),
    Case("explain", {"model": "both", "prompt": "hi"}, ctl=("explain", "both", "--prompt", "hi"), code="bad_request"),
    Case("explain", {"model": "m", "prompt": "hi"}, ctl=("explain", "m", "--prompt", "hi"), code="bad_request"),
    Case("explain", {"model": "nobody"}, ctl=("explain", "nobody"), code="model_not_found"),
    Case("routes", ctl=("routes",)),
    Case("routes", {"route": "both"}, ctl=("routes", "both")),
    Case("routes", {"route": "m"}, ctl=("routes", "m"), code="model_not_found"),
    Case("logs", {"model": "m", "lines": 3}),
    Case("logs", {"model": "m", "lines": -1}, code="bad_request"),
    Case("logs", {"model": "nobody"}, ctl=("logs", "nobody"), code="model_not_found"),
    *(Case("load", {"model": n}, ("LoadModel", "(sa{sv})", n, NONE), ("load", n)) for n in ("m", "gpt", "local/m")),
    Case("load", {"model": "m", "allow-evict": "1"}, ("LoadModel", "(sa{sv})", "m", {"allow-evict": FLAG})),
    Case("load", {"model": "both"}, ("LoadModel", "(sa{sv})", "both", NONE), ("load", "both"), "bad_request"),
    Case("load", {"model": "no"}, ("LoadModel", "(sa{sv})", "no", NONE), ("load", "no"), "model_not_found"),
    Case("load", {"model": "huge"}, ("LoadModel", "(sa{sv})", "huge", NONE), ("load", "huge"), "does_not_fit"),
    Case("load", {"model": "m", "x": "1"}, ("LoadModel", "(sa{sv})", "m", {"x": FLAG}), code="bad_request"),
    Case("unload", {"model": "local/m"}, ("UnloadModel", "(ssa{sv})", "local/m", "drain", NONE), ("unload", "m")),
    Case("unload", {"model": "no"}, ("UnloadModel", "(ssa{sv})", "no", "now", NONE), ("unload", "no"),
         "model_not_found"),
    Case("tune", {"model": "embeds"}, ("Tune", "(sa{sv})", "embeds", NONE), ("tune", "embeds"), "bad_request"),
    Case("tune", {"model": "no"}, ("Tune", "(sa{sv})", "no", NONE), ("tune", "no"), "model_not_found"),
    Case("reset", {"model": "local/m"}, ("ResetFailed", "(s)", "local/m"), ("reset", "m")),
    Case("reset", {"all": "1"}, ("ResetFailed", "(s)", "")),
    Case("reset", {"model": "no"}, ("ResetFailed", "(s)", "no"), ("reset", "no"), "model_not_found"),
    Case("pin", {"model": "local/m", "reason": "a test"}, ("PinModel", "(sssa{sv})", "local/m", "a test", "", NONE)),
    Case("pin", {"model": "m", "reason": " "}, ("PinModel", "(sssa{sv})", "m", " ", "", NONE), code="bad_request"),
    Case("pin", {"model": "huge", "reason": "x"}, ("PinModel", "(sssa{sv})", "huge", "x", "", NONE),
         code="does_not_fit"),
    Case("hold", {"model": "m", "reason": "a test"}, ("HoldModel", "(sssa{sv})", "m", "a test", "", NONE)),
    Case("hold", {"model": "no", "reason": "x"}, ("HoldModel", "(sssa{sv})", "no", "x", "", NONE),
         code="model_not_found"),
    Case("unpin", {"cookie": 4711}, ("Unpin", "(u)", 4711), code="pin_not_found"),
    Case("memory", ctl=("memory",), before="load?model=m"),
    Case("memory/learned", ctl=("memory", "learned")),
    Case("memory/forget", {"all": "1"}, ("ForgetMemory", "(s)", ""), ("memory", "forget", "--all")),
    Case("memory/forget", {"model": "no"}, ("ForgetMemory", "(s)", "no"), ("memory", "forget", "no"),
         "model_not_found"),
    *(Case("fit", {"model": name}) for name in ("m", "local/m")),
    Case("fit", {"model": "no"}, code="model_not_found"),
    Case("build", {"model": "m"}),
    Case("build", code="model_failed"),  # there is no llama-server here
    Case("build", {"model": "no"}, code="model_not_found"),
    Case("evict", bus=("Evict", "(toa{sv})", 0, "/", NONE), before="evict"),
    Case("evict", {"bytes": 1 << 60}, ("Evict", "(toa{sv})", 1 << 60, "/", NONE), code="does_not_fit"),
    Case("yield", {"for": 1800, "now": "1"},
         ("YieldMemory", "(a{sv})", {"for-usec": GLib.Variant("t", 1_800_000_000), "now": FLAG}),
         ("yield", "--for", "30m", "--now"), before="yield?now=1"),
    Case("yield", {"for": 0}, ("YieldMemory", "(a{sv})", {"for-usec": GLib.Variant("t", 0)}), code="bad_request"),
    Case("resume", bus=("Resume", "(a{sv})", NONE), ctl=("resume",), before="yield?now=1"),
    Case("devices", ctl=("devices",)),
    Case("devices", {"device": "cpu"}),
    Case("devices", {"device": "none"}, code="device_not_found"),
    Case("rescan", bus=("Rescan", "(a{sv})", NONE)),
    Case("download", {"source": "hf:tiny/hello"}, ("Download", "(sa{sv})", "tiny/hello", NONE)),
    Case("download", {"source": "no model"}, ("Download", "(sa{sv})", "no model", NONE), code="bad_request"),
    Case("download", {"source": "tiny/none"}, ("Download", "(sa{sv})", "tiny/none", NONE), code="hub_offline"),
    Case("toolboxes", ctl=("toolbox", "list")),
    Case("remotes", ctl=("remotes",)),
    Case("toolbox/refresh", {"name": "none"}, ("RefreshToolbox", "(sa{sv})", "none", NONE),
         ("toolbox", "refresh", "none"), "toolbox_failed"),
    Case("toolbox/pin", {"name": "none"}, ("PinToolbox", "(s)", "none"), ("toolbox", "pin", "none"), "toolbox_failed"),
    Case("toolbox/unpin", {"name": "none"}, ("UnpinToolbox", "(s)", "none"), ("toolbox", "unpin", "none"),
         "toolbox_failed"),
    Case("reload", bus=("Reload", "(a{sv})", NONE), ctl=("reload",)),
    Case("config/check"),
    Case("jobs"),
    Case("job", {"id": 4711}, code="job_not_found"),
    Case("job", {"id": "x"}, code="bad_request"),
    Case("job/cancel", {"id": 4711}, code="job_not_found"),
]  # fmt: skip

ON_OBJECTS = frozenset({"job/cancel"})  # on the bus it is a method of an object, which is not there when it fails


@dataclass
class World:
    live: Live
    client: Client

    # --- one question over each ---

    def over_http(self, case: Case) -> Any:
        """The answer, or the AccelError's code and message."""
        self._prepare(case)
        operation = OPERATIONS[case.operation]
        path = f"/accelerd/v1/{case.operation}" + (f"?{urlencode(case.query)}" if case.query else "")
        if operation.kind == "claim" and case.code is None:
            return self._claim(path)
        answer = self.live.daemon.control(HTTP_METHODS[operation.kind], path)
        if case.operation == "logs" and answer.status == 200:
            return {"model": case.query["model"], "lines": answer.body.decode().splitlines()}
        last = json.loads(answer.body.splitlines()[-1])
        error = last.get("error") or {}
        return (error["code"], error["message"]) if "code" in error else last

    def over_bus(self, case: Case) -> Any:
        self._prepare(case)
        operation = OPERATIONS[case.operation]
        if case.bus is None:
            arguments = {key: str(value) for key, value in case.query.items()}
            return self._called(lambda: json.loads(self._call("Query", "(sa{ss})", case.operation, arguments)[0]))
        method, signature, *values = case.bus

        def ask() -> Any:
            found = self._call(method, signature, *values)
            if operation.kind != "job":
                return found
            job = found[0]
            self.client.answer(job, names.BUS_JOB, "Wait")
            number = job.rpartition("/")[2]
            return json.loads(self._call("Query", "(sa{ss})", "job", {"id": number})[0])["last"]

        return self._called(ask)

    def over_accelctl(self, case: Case) -> Any:
        out, err = io.StringIO(), io.StringIO()
        assert case.ctl is not None
        self._prepare(case)
        status = run([*case.ctl, "--json"], self.live.daemon.env, io.StringIO(), out, err)
        text = out.getvalue() or err.getvalue()
        found = json.loads(text if text.startswith(("{\n", "[")) else text.splitlines()[-1])
        if status:
            return found["error"]["code"], found["error"]["message"]
        return found

    def _prepare(self, case: Case) -> None:
        if case.before is not None:
            self.live.daemon.control("POST", case.before)

    def _claim(self, path: str) -> Any:
        connection = UnixConnection(self.live.daemon.control_socket)
        connection.request("POST", path)
        response = connection.getresponse()
        first = json.loads(response.readline())
        response.close()
        connection.close()
        return first

    def _call(self, method: str, signature: str, *values: Any) -> Any:
        path, interface = names.BUS_PATH, names.BUS_MANAGER
        if method == "Rescan":
            path, interface = f"{names.BUS_DEVICES}/cpu", names.BUS_DEVICE
        return self.client.answer(path, interface, method, signature, *values).unpack()

    def _called(self, ask: Any) -> Any:
        try:
            return ask()
        except GLib.Error as error:
            return Gio.DBusError.get_remote_error(error), error.message.partition(": ")[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, glib_worker: None) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("parity")
    site = Site(directory)
    toml = [
        QUICK.replace("[scheduler]", '[scheduler]\nmemory = "4GB"'),
        site.model("m", memory=5_000_000, aliases=["gpt"]),
        site.model("other", memory=5_000_000),
        site.model("huge", memory="8GB"),
        site.model("embeds", memory=5_000_000, embeddings=True),
        site.model("slow", "slow-load:60", memory=5_000_000),
        '[models.m.variants.short]\nset = {max_tokens = 9, x.y = [1, "a"]}\nremove = ["seed"]\nsystem = "Be short."\n',
        '[routes.both]\nmodels = ["short", "other"]\nvariants.pair = {default = {top_k = 4}, hidden = true}\n',
        '[routes.tiered.tiers]\nsimple = "m"\nreasoning = "other"\n',
    ]
    programs = directory / "bin"  # no podman: this machine's toolboxes are left alone
    programs.mkdir()
    (programs / "python3").symlink_to(Path(sys.executable).resolve())
    with private_bus(directory / "bus") as bus, DaemonFactory(directory) as daemons:
        cache = directory / "hub/models--tiny--hello/snapshots/abc"
        cache.mkdir(parents=True)
        pairs = {"general.architecture": string("llama")}
        write(
            cache / "hello-Q4_K_M.gguf",
            pairs,
            {"token_embd.weight": ((64, 64), 0), "blk.0.attn_q.weight": ((64, 64), 0)},
        )
        hub = {"HF_HUB_CACHE": str(directory / "hub"), "HF_HUB_OFFLINE": "1"}
        env = environment(bus) | {"PATH": str(programs)} | hub
        client = Client(bus.address)
        yield World(Live(daemons.start("".join(toml), env=env), bus), client)
        client.leave()


def steady(value: Any) -> Any:
    """The value without what changes from moment to moment."""
    if isinstance(value, dict):
        return {key: "…" if key in MOMENTARY else steady(one) for key, one in value.items()}
    return [steady(one) for one in value] if isinstance(value, list) else value


def test_every_operation_has_a_case() -> None:
    assert {case.operation for case in CASES} | {"events"} == OPERATIONS.keys()


def test_every_operation_is_documented() -> None:
    """With its HTTP method and every argument."""
    text = (ROOT / "docs" / "control.md").read_text()
    rows = {
        row[1]: row for row in re.findall(r"^\| `(GET|POST) /accelerd/v1/([\w/]+)` \| (.*?) \|", text, re.MULTILINE)
    }
    assert rows.keys() == OPERATIONS.keys()
    for name, (method, _, arguments) in rows.items():
        operation = OPERATIONS[name]
        assert method == HTTP_METHODS[operation.kind]
        told = set(re.findall(r"`([\w-]+)`", arguments))
        assert told == {one.encode_name for one in msgspec.structs.fields(operation.request)}, name


def test_every_operation_is_on_the_bus() -> None:
    """By a method of its own, by Query if it only looks, by signals if it tells events."""
    by_method = {method.operation for method in METHODS.values()}
    for operation in OPERATIONS.values():
        as_signals = operation.kind == "stream"
        assert operation.name in by_method or operation.kind == "look" or as_signals, operation.name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_question_has_the_same_answer(world: World, case: Case) -> None:
    operation = OPERATIONS[case.operation]
    world.live.daemon.control("POST", "resume")
    http = world.over_http(case)
    if case.code is not None:
        assert http[0] == case.code, http
        http = http[0], http[1].partition(", not ")[0]  # text there, a number here
    if case.operation not in ON_OBJECTS:
        bus = world.over_bus(case)
        if case.code is not None:
            assert (bus[0], bus[1].partition(", not ")[0]) == (names.BUS_ERROR + BUS_NAMES[case.code], http[1])
        elif operation.kind in ("look", "job"):
            assert steady(bus) == steady(http)
        else:
            assert len(bus) <= 1, "what it is about is in the method's own arguments"
    if case.ctl is not None:
        told = world.over_accelctl(case)
        if case.code is not None:
            assert told[0] == case.code, told  # in words of its own
        elif isinstance(told, dict) and operation.kind != "action":
            expected = steady(http)
            shared = {key: one for key, one in steady(told).items() if key in expected and key != "event"}
            assert shared == {key: expected[key] for key in shared}
            assert shared


def test_events_are_those_of_the_bus(world: World) -> None:
    for action in ("resume", "unload?model=other"):
        world.live.daemon.control("POST", action)
    connection = UnixConnection(world.live.daemon.control_socket)
    connection.request("GET", "/accelerd/v1/events")
    response = connection.getresponse()
    job = world._call("LoadModel", "(sa{sv})", "other", NONE)[0]
    world.client.answer(job, names.BUS_JOB, "Wait")
    seen: list[dict[str, Any]] = []
    while not any(one["event"] == "job" and one["result"] for one in seen):
        seen.append(json.loads(response.readline()))
    assert {one["job"] for one in seen if one["event"] == "job"} == {int(job.rpartition("/")[2])}
    states = [(one["before"], one["state"]) for one in seen if one["event"] == "model"]
    assert states == [("stopped", "starting"), ("starting", "ready")]
    response.close()
    connection.close()


def test_a_pin_over_http_is_seen_on_the_bus_and_ends_with_its_client(world: World) -> None:
    def cookies() -> set[int]:
        return {one[0] for one in world.live.get(names.BUS_PATH, "Pins")}

    connection = UnixConnection(world.live.daemon.control_socket)
    connection.request("POST", "/accelerd/v1/hold?model=m&reason=writing")
    response = connection.getresponse()
    cookie = json.loads(response.readline())["cookie"]
    eventually(lambda: cookie in cookies(), "it is there")
    response.close()
    connection.close()
    eventually(lambda: cookie not in cookies(), "it has ended")


def test_a_job_is_joined_over_both_and_lasts_as_long_as_one_wants_it(world: World) -> None:
    reader = UnixConnection(world.live.daemon.control_socket)
    reader.request("POST", "/accelerd/v1/load?model=slow")
    response = reader.getresponse()
    assert json.loads(response.readline())["event"] == "progress"
    job = world._call("LoadModel", "(sa{sv})", "slow", NONE)[0]
    number = job.rpartition("/")[2]
    under_way = world.live.daemon.control("GET", "jobs").json()["jobs"]
    assert [one["id"] for one in under_way if one["subject"] == "slow"] == [int(number)]
    response.close()
    reader.close()
    assert world.live.daemon.control("GET", f"job?id={number}").json()["state"] != "done"
    canceled = world.live.daemon.control("POST", f"job/cancel?id={number}")
    assert canceled.status == 200
    assert world.client.answer(job, names.BUS_JOB, "Wait").unpack() == ("canceled",)
    world.live.daemon.wait_state("slow", "stopped")


async def test_nothing_is_begun_while_the_daemon_ends() -> None:
    api = an_api()
    api.parts.daemon.state = "draining"  # type: ignore[misc]
    for operation in OPERATIONS.values():
        if operation.kind in ("job", "claim"):
            asked = [case for case in CASES if case.operation == operation.name and case.code != "bad_request"]
            query = {key: str(one) for key, one in asked[0].query.items()}
            with pytest.raises(AccelError) as refused:
                await api.call(operation.name, query, "", text=True)
            assert refused.value.code == "shutting_down", operation.name
