"""Operations on memory: what they tell of a ledger, what they forget, what they refuse."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec
from accelerd.control import memory
from accelerd.control.operations import operations_of, parse
from accelerd.memory.learned import Learned
from accelerd.memory.ledger import Holding, Ledger
from accelerd.memory.model import RAM, Forecast, ForeignUser, MemoryRequirement, MemorySnapshot, Pool, Stall
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import Snapshot

GIB = 1 << 30
POOL = Pool(RAM, "main memory", 64 * GIB, 4 * GIB, 10 * GIB)


def snapshot(name: str, **changes: Any) -> Snapshot:
    spec = ModelSpec(name, path=f"/m/{name}.gguf", **changes.pop("spec", {}))
    known: dict[str, Any] = {
        "state": State.STOPPED, "since": 1.0, "reason": "", "instance": None, "started_at": 0.0, "leases": 0,
        "queue": 0, "idle": None, "need": MemoryRequirement({RAM: 3 * GIB}, "estimated"), "held": {}, "used": {},
        "displaced": False,
        "device": "", "retry_in": None, "error": None, "outdated": False, "residues": (), "history": (),
    }  # fmt: skip
    return Snapshot(spec=spec, **(known | changes))


class Models:
    """A scheduler that knows some models."""

    def __init__(self, *snapshots: Snapshot) -> None:
        self.known = {one.spec.name: one for one in snapshots}
        self.forecasts: dict[str, Forecast] = {}

    def snapshot(self, name: str) -> Snapshot:
        if name not in self.known:
            raise AccelError("model_not_found", f"cannot find model {name!r}")
        return self.known[name]

    def snapshots(self) -> list[Snapshot]:
        return list(self.known.values())

    def placement(self, name: str) -> tuple[bool, str]:
        return True, f"{name} would fit"

    def forecast(self, name: str, forecast: Forecast) -> None:
        self.forecasts[name] = forecast

    holdings: tuple[Holding, ...] = ()

    @property
    def memory(self) -> Models:
        """The scheduler's MemoryEvents."""
        return self

    def ledger(self) -> Ledger:
        return Ledger([POOL], self.holdings)


def learned(*names: str) -> Learned:
    found = Learned((), lambda entries: None, lambda: 1e9)
    for name in names:
        for device in ((), ("0000:c4:00.0",)):
            need = MemoryRequirement({RAM: 2 * GIB}, "estimated", device)
            found.saw(f"key of {name}", need, {RAM: GIB}, settled=True, model=name, file=f"/m/{name}.gguf")
    return found


class Site:
    """Operations over a made-up daemon."""

    def __init__(self, *snapshots: Snapshot, holdings: tuple[Holding, ...] = (), known: Learned | None = None) -> None:
        self.models = Models(*snapshots)
        self.models.holdings = holdings
        self.learned = known or learned()
        self.yielded: dict[str, Any] | None = None
        self.degraded: str | None = None
        self.seen = MemorySnapshot(1.0, (POOL,), {}, (ForeignUser(RAM, 7, "firefox", 5 * GIB),), Stall(0.5, 0.0))
        parts = SimpleNamespace(
            scheduler=self.models,
            memory=self,
            model_info=SimpleNamespace(learned=self.learned, forecast=self.forecast),
            yielding=SimpleNamespace(report=lambda: self.yielded),
            find=self.models.snapshot,
        )
        self.operations = operations_of(parts, memory)

    async def look(self) -> MemorySnapshot:
        return self.seen

    async def forecast(self, spec: ModelSpec, *, ask: bool) -> Forecast:
        return Forecast((MemoryRequirement({RAM: GIB}, f"estimated for {spec.name}", (), {RAM: {"weights": GIB}}),))

    async def __call__(self, name: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        operation = self.operations[name]
        answer = await operation.call(parse(operation.request, query or {}, text=True), "")
        found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(answer))
        return found


async def test_memory() -> None:
    site = Site(
        snapshot("qwen", state=State.READY, leases=2, spec={"pin": True, "priority": 3}),
        snapshot("glm", queue=4, need=MemoryRequirement({RAM: 70 * GIB}, "estimated")),
        holdings=(Holding("qwen", "resident", {RAM: 20 * GIB}, {RAM: 18 * GIB}), Holding("gone", "lost", {RAM: GIB})),
    )
    site.yielded, site.degraded = {"what": "the GPU"}, "a driver hangs"
    answer = await site("memory")
    [pool] = answer["pools"]
    assert (pool["id"], pool["foreign"], pool["free"]) == (RAM, 9 * GIB, 30 * GIB)
    assert pool["foreign_users"] == [{"pid": 7, "process": "firefox", "size": 5 * GIB}]
    assert pool["holdings"] == [
        {"model": "qwen", "phase": "resident", "reserved": 20 * GIB, "used": 18 * GIB, "prompt_cache": 0, "leases": 2,
         "idle": None, "pin": True, "priority": 3},
        {"model": "gone", "phase": "lost", "reserved": GIB, "used": None, "prompt_cache": 0, "leases": 0, "idle": None,
         "pin": False, "priority": 0},
    ]  # fmt: skip
    assert answer["waiting"] == [
        {"model": "glm", "requests": 4, "state": "stopped", "fits": True, "reason": "glm would fit",
         "wanted": {RAM: 70 * GIB}}
    ]  # fmt: skip
    assert (answer["stall"], answer["yielded"]) == ({"some": 0.5, "full": 0.0}, {"what": "the GPU"})
    assert answer["degraded"] == "a driver hangs"


async def test_learned() -> None:
    known = learned("qwen")
    known.outgrown("key of qwen", MemoryRequirement({RAM: 2 * GIB}, "estimated"), 3 * GIB, model="qwen")
    first, second = (await Site(known=known)("memory/learned"))["learned"]
    assert first == {
        "model": "qwen", "file": "/m/qwen.gguf", "devices": [], "estimate": {RAM: 2 * GIB}, "measured": {RAM: GIB},
        "need": 3 * GIB, "lacked": 2 * GIB, "shortages": 1, "runs": 1, "at": 1e9,
    }  # fmt: skip
    assert (second["devices"], second["need"], second["shortages"]) == (["0000:c4:00.0"], None, 0)


async def test_forgetting_one_model_has_it_estimated_again() -> None:
    site = Site(snapshot("qwen"), snapshot("glm"), known=learned("qwen", "glm"))
    assert await site("memory/forget", {"model": "qwen"}) == {"forgotten": 2}
    assert {entry.model for entry in site.learned.entries()} == {"glm"}
    assert list(site.models.forecasts) == ["qwen"]
    assert await site("memory/forget", {"model": "qwen"}) == {"forgotten": 0}


async def test_forgetting_all_and_models_that_are_no_more() -> None:
    site = Site(snapshot("qwen"), known=learned("qwen", "old", "older"))
    assert await site("memory/forget", {"model": "old"}) == {"forgotten": 2}
    assert site.models.forecasts == {}
    assert await site("memory/forget", {"all": "1"}) == {"forgotten": 4}
    assert site.learned.entries() == ()
    assert list(site.models.forecasts) == ["qwen"]


async def test_fit() -> None:
    answer = await Site(snapshot("qwen"))("fit", {"model": "qwen"})
    assert answer == {
        "model": "qwen", "state": "stopped", "placement": {"fits": True, "reason": "qwen would fit"},
        "options": [{"amounts": {RAM: GIB}, "devices": [], "parts": {"weights": GIB}, "source": "estimated for qwen",
                     "shares": {RAM: {"weights": GIB}}, "claims": [], "context": None}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "query", "code"),
    [
        ("fit", {}, "bad_request"),
        ("fit", {"model": "x"}, "model_not_found"),
        ("memory/forget", {}, "bad_request"),
        ("memory/forget", {"model": "qwen", "all": "1"}, "bad_request"),
        ("memory/forget", {"model": "x"}, "model_not_found"),
    ],
)
async def test_refusals(name: str, query: dict[str, str], code: str) -> None:
    with pytest.raises(AccelError) as error:
        await Site(snapshot("qwen"), known=learned("qwen"))(name, query)
    assert error.value.code == code
