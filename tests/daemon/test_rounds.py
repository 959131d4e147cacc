"""Random rounds of loads, unloads, kills and restarts under a real systemd: nothing is left of them.

ACCELERD_TEST_ROUNDS sets how many (40), ACCELERD_TEST_SEED which ones; a failure names the seed and what was done.
"""

from __future__ import annotations

import http.client
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from accelerd.scheduler.lifecycle import OCCUPIED
from tests.daemon.kit import QUICK, marked, side_by_side
from tests.daemon.service import SERVICE, Service, installed
from tests.harness import PATIENCE, eventually
from tests.system.systemd_user import UserManager, wait_until

ROUNDS = int(os.environ.get("ACCELERD_TEST_ROUNDS", "40"))
SEED = int(os.environ.get("ACCELERD_TEST_SEED", "1"))
CALM = {"ready", "stopped", "backoff", "failed"}
# name → mode of the fake server and further settings; every home that this world has, and every way to be difficult
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("ok", {}),
    "deaf": ("ignore-term", {"stop_timeout": 0.2}),
    "slow": ("slow-load:0.3", {}),
    "child": ("ok", {"home": "child"}),
    "bound": ("ok", {"survive": False, "home": "systemd"}),
}
SURVIVORS = {"plain", "deaf", "slow"}
QUIET_START_LIMIT = "[Service]\nRestartSec=50ms\n[Unit]\nStartLimitIntervalSec=0"


@pytest.fixture
def service(user_manager: UserManager) -> Iterator[Service]:
    yield from installed(user_manager)


class World:
    """What may be done to a service, and what must be true whenever it has come to rest."""

    def __init__(self, service: Service, chance: random.Random, *, tcp: bool) -> None:
        self.service = service
        self.tcp = tcp
        self.chance = chance
        self.done: list[str] = []
        self.kept: dict[str, int] = {}  # pids of models that must still be there after the round
        self.deeds: list[Callable[[], None]] = [
            self.load, self.load, self.load, self.ask, self.unload, self.kill_engine,
            self.kill_daemon, self.restart, self.stop_and_start, self.end_in_the_middle, self.crowd,
        ]  # fmt: skip

    # --- deeds ---

    def load(self) -> None:
        name = self.any("load")
        event = self.service.events(f"load?model={name}")[-1]
        assert event["event"] == "ready", event

    def ask(self) -> None:
        assert self.service.chat(self.any("ask")).status in (200, 503)

    def unload(self) -> None:
        name = self.any("unload")
        force = self.chance.choice("01")
        assert self.service.events(f"unload?model={name}&force={force}")[-1]["event"] == "stopped"
        self.kept.pop(name, None)

    def kill_engine(self) -> None:
        live = [m for m in self.service.status()["models"] if m["pid"]]
        if live:
            model = self.chance.choice(live)
            self.done.append(f"kill engine {model['name']}")
            self.kept.pop(model["name"], None)
            self.service.manager.run(["kill", "-KILL", str(model["pid"])])
            eventually(lambda: self.service.status(model["name"])["pid"] != model["pid"], "its end is seen")

    def kill_daemon(self) -> None:
        self.done.append("kill daemon")
        self.service.back(self.service.kill())

    def restart(self) -> None:
        self.done.append("restart")
        old = self.service.main_pid()
        self.service.manager.systemctl("restart", SERVICE)
        self.service.back(old)

    def stop_and_start(self) -> None:
        self.done.append("stop")
        self.kept.clear()
        self.service.stop_all()
        assert wait_until(self.service.nothing_left), self.service.leftovers()
        self.service.start()

    def end_in_the_middle(self) -> None:
        """The daemon goes while something is being done."""
        name, how = self.any("in the middle"), self.chance.choice(["kill", "restart"])
        what = self.chance.choice(["load", "unload"])
        self.done.append(f"{how} in the middle of {what}")
        self.kept.pop(name, None)
        old = self.service.main_pid()
        with side_by_side() as do:
            do(unheeded, self.service.events, f"{what}?model={name}")
            time.sleep(self.chance.random() * 0.4)  # any moment of it may be the one
            if how == "kill":
                self.service.kill()
            else:
                self.service.manager.systemctl("restart", SERVICE)
            self.service.back(old)

    def crowd(self) -> None:
        """All models at once."""
        self.done.append("crowd")
        with side_by_side() as do:
            asked = [do(self.service.chat, name) for name in MODELS for _ in range(2)]
            assert {future.result(PATIENCE * 2).status for future in asked} <= {200, 503}

    def any(self, what: str) -> str:
        name = self.chance.choice(list(MODELS))
        self.done.append(f"{what} {name}")
        return name

    # --- rest ---

    def play(self) -> None:
        models = self.service.status()["models"]
        self.kept = {m["name"]: m["pid"] for m in models if m["name"] in SURVIVORS and m["pid"]}
        self.chance.choice(self.deeds)()
        trouble = ["not looked at"]

        def at_rest() -> bool:
            trouble[:] = self.wrong()
            return not trouble

        assert wait_until(at_rest, 15), (SEED, trouble, self.done[-12:], self.service.leftovers())
        pids = {m["name"]: m["pid"] for m in self.service.status()["models"]}
        assert self.kept.items() <= pids.items(), (SEED, self.kept, pids, self.done[-12:])

    def wrong(self) -> list[str]:
        """Everything that is not as it should be, in words."""
        status = self.service.status()
        models = {m["name"]: m for m in status["models"]}
        live = {name: m["pid"] for name, m in models.items() if m["pid"]}
        ready = {name for name, m in models.items() if m["state"] == "ready"}
        units = {unit for unit in self.service.model_units() if not unit.endswith(".slice")}
        mains = {int(self.service.manager.properties(unit)["MainPID"]) for unit in units}
        files = self.service.files()
        suffixes = sorted(name.rpartition(".")[2] for name in files)
        wanted = ["json", "out"] * len(ready - {"child"})
        ports = self.service.listening()
        endpoints = (0, len(live)) if self.tcp else (len(live), 0)
        held = sum(m["memory"] for m in models.values() if m["state"] in OCCUPIED)
        checks = {
            "states": {m["state"] for m in models.values()} <= CALM and set(live) == ready,
            "processes": {process.pid for process in marked(self.service)} == set(live.values()),
            "zombies": not [p for p in psutil.process_iter(["status", "ppid"]) if self.is_zombie(p, status["pid"])],
            "units": mains == {pid for name, pid in live.items() if name != "child"},
            "files": [suffix for suffix in suffixes if suffix != "sock"] == sorted(wanted),
            "endpoints": (suffixes.count("sock"), len(ports)) == endpoints,
            "ledger": status["scheduler"]["memory_used"] == held and not status["scheduler"]["residues"],
            "queue": status["scheduler"]["queue"] == 0 and not any(m["leases"] for m in models.values()),
        }
        facts = f"{ {n: (m['state'], m['pid']) for n, m in models.items()} } {units} {files} {ports}"
        return [f"{what}: {facts}" for what, right in checks.items() if not right]

    @staticmethod
    def is_zombie(process: psutil.Process, parent: int) -> bool:
        return bool(process.info["status"] == psutil.STATUS_ZOMBIE and process.info["ppid"] == parent)


def unheeded(function: Callable[..., object], *arguments: object) -> None:
    """What becomes of it does not matter: the daemon goes meanwhile."""
    try:
        function(*arguments)
    except (OSError, http.client.HTTPException, ValueError):
        return


@pytest.mark.timeout(60 + ROUNDS * 20)
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_random_rounds_leave_nothing_that_should_not_be_there(service: Service, transport: str) -> None:
    models = [service.site.model(name, mode, **settings) for name, (mode, settings) in MODELS.items()]
    engine = f'[engines.llama-server]\ntransport = "{transport}"\n'
    service.install(QUICK + engine + "".join(models), dropin=QUIET_START_LIMIT)
    service.start()
    world = World(service, random.Random(f"{SEED} {transport}"), tcp=transport == "tcp")
    for _ in range(ROUNDS // 2):
        world.play()
    service.stop_all()
    assert wait_until(service.nothing_left), (SEED, world.done[-12:], service.leftovers())
