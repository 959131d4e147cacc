"""Random rounds of everything that may be done to a service, and what must be true whenever it has come to rest.

A World does one thing after the other and looks after each; what a home leaves while a model lives in it is the
table FILES. The tests say which models there are; ACCELERD_TEST_ROUNDS how many rounds, ACCELERD_TEST_SEED which ones.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil

from accelerd.scheduler.lifecycle import OCCUPIED
from tests.daemon.kit import QUICK, marked, side_by_side
from tests.daemon.service import SERVICE, Service
from tests.harness import PATIENCE, eventually
from tests.system.systemd_user import wait_until

ROUNDS = int(os.environ.get("ACCELERD_TEST_ROUNDS", "40"))
SEED = int(os.environ.get("ACCELERD_TEST_SEED", "1"))
CALM = {"ready", "stopped", "backoff", "failed"}
INITS = {"podman-init", "catatonit"}  # carry the mark as well
QUIET_START_LIMIT = "[Service]\nRestartSec=50ms\n[Unit]\nStartLimitIntervalSec=0"
FILES: dict[str, tuple[str, ...]] = {
    "systemd": ("json", "out"),
    "child": (),
    "toolbox": ("exec", "json", "out"),
    "distrobox": ("exec", "json", "out"),
    "podman": ("json", "out"),
    "lemonade": ("json",),
}


@dataclass(frozen=True)
class Kind:
    """One model of a world."""

    home: str
    mode: str = "ok"
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def survives(self) -> bool:
        return self.home not in ("child", "lemonade") and self.settings.get("survive", True)

    @property
    def files(self) -> tuple[str, ...]:
        """ExitHandling of what lies in the directory of the instances while it is loaded."""
        guard = ("life",) if self.home in ("toolbox", "distrobox") and not self.survives else ()
        return (*FILES[self.home], *guard)


class World:
    """See the module's text. `tcp`: the models listen on ports."""

    patience = 20.0  # s until it is at rest
    engines = ""  # TOML: more settings of llama-server, and other engines

    def __init__(self, service: Service, models: dict[str, Kind], *, tcp: bool, seed: int = SEED) -> None:
        self.service = service
        self.models = models
        self.tcp = tcp
        self.seed = seed
        self.chance = random.Random(f"{seed} {tcp}")
        self.done: list[str] = []
        self.context = dict.fromkeys(models, 1024)
        self.kept: dict[str, int] = {}  # pids of models that must still be there after the round
        self.deeds: list[Callable[[], None]] = [
            self.load, self.load, self.load, self.ask, self.unload, self.kill_engine, self.kill_daemon,
            self.restart, self.stop_and_start, self.end_in_the_middle, self.crowd, self.reload,
        ]  # fmt: skip

    def toml(self) -> str:
        transport = "tcp" if self.tcp else "unix"
        models = "".join(self.model(name, kind) for name, kind in self.models.items())
        return f'{QUICK}[engines.llama-server]\ntransport = "{transport}"\n{self.engines}{models}'

    def model(self, name: str, kind: Kind) -> str:
        settings = {"home": kind.home, "context": self.context[name], **kind.settings}
        if kind.home == "lemonade":
            settings = {"engine": "lemonade", **settings}
            del settings["home"]
            return f"[models.{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        return self.service.site.model(name, kind.mode, **settings)

    def begin(self, **how: Any) -> None:
        self.service.install(self.toml(), dropin=QUIET_START_LIMIT, **how)
        self.service.start()

    def end(self) -> None:
        self.service.stop_all()
        assert wait_until(self.service.nothing_left), (self.seed, self.done[-12:], self.service.leftovers())

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
        self.end()
        self.service.start()

    def reload(self) -> None:
        """A model's settings change: the one that runs is replaced."""
        name = self.any("reload with other settings for")
        self.context[name] += 1024
        self.kept.pop(name, None)
        self.service.configure(self.toml())
        self.service.manager.systemctl("reload", SERVICE)

    def end_in_the_middle(self) -> None:
        """The daemon goes while something is being done."""
        name, how = self.any("in the middle"), self.chance.choice(["kill", "restart"])
        what = self.chance.choice(["load", "unload"])
        self.done.append(f"{how} in the middle of {what}")
        self.kept.pop(name, None)
        old = self.service.main_pid()
        with side_by_side() as do:
            do(unheeded, self.service.events, f"{what}?model={name}")
            time.sleep(self.chance.random() * 0.8)  # any moment of it may be the one
            if how == "kill":
                self.service.kill()
            else:
                self.service.manager.systemctl("restart", SERVICE)
            self.service.back(old)

    def crowd(self) -> None:
        """All models at once."""
        self.done.append("crowd")
        with side_by_side() as do:
            asked = [do(self.service.chat, name) for name in self.models for _ in range(2)]
            assert {future.result(PATIENCE * 2).status for future in asked} <= {200, 503}

    def any(self, what: str) -> str:
        name = self.chance.choice(list(self.models))
        self.done.append(f"{what} {name}")
        return name

    # --- rest ---

    def play(self) -> None:
        found = self.service.status()["models"]
        self.kept = {m["name"]: m["pid"] for m in found if self.models[m["name"]].survives and m["pid"]}
        self.chance.choice(self.deeds)()
        trouble = ["not looked at"]

        def at_rest() -> bool:
            trouble[:] = self.wrong()
            return not trouble

        assert wait_until(at_rest, self.patience), (self.seed, trouble, self.done[-12:], self.service.leftovers())
        pids = {m["name"]: m["pid"] for m in self.service.status()["models"]}
        assert self.kept.items() <= pids.items(), (self.seed, self.kept, pids, self.done[-12:], self.service.output())

    def wrong(self) -> list[str]:
        """Everything that is not as it should be, in words."""
        status = self.service.status()
        models = {m["name"]: m for m in status["models"]}
        live = {name: m["pid"] for name, m in models.items() if m["pid"]}
        ready = {name for name, m in models.items() if m["state"] == "ready"}
        files = self.service.files()
        suffixes = sorted(name.rpartition(".")[2] for name in files)
        servers = self.service.lemonade_server()
        printed = ["out"] * len(servers)
        wanted = sorted([suffix for name in ready for suffix in self.models[name].files] + printed)
        ports = self.service.listening()
        own = len(live) - len(self.in_lemonade(live))
        endpoints = (0, own) if self.tcp else (own, 0)
        held = sum(m["memory"] for m in models.values() if m["state"] in OCCUPIED)
        processes = {p.pid for p in marked(self.service) if name_of(p) not in INITS}
        checks = {
            "states": {m["state"] for m in models.values()} <= CALM and set(live) == ready,
            "processes": processes == servers | set(live.values()),
            "zombies": not [p for p in psutil.process_iter(["status", "ppid"]) if is_zombie(p, status["pid"])],
            "files": [suffix for suffix in suffixes if suffix != "sock"] == wanted,
            "endpoints": (suffixes.count("sock"), len(ports)) == endpoints,
            "ledger": status["scheduler"]["memory_used"] == held and not status["scheduler"]["residues"],
            "queue": status["scheduler"]["queue"] == 0 and not any(m["leases"] for m in models.values()),
            **self.homes_hold({name: live[name] for name in ready if name in live}),
        }
        states = {name: (m["state"], m["pid"], m["memory"]) for name, m in models.items()}
        facts = f"{states} {status['scheduler']} {files} {ports}"
        return [f"{what}: {facts}" for what, right in checks.items() if not right]

    def homes_hold(self, live: dict[str, int]) -> dict[str, bool]:
        """Do homes have exactly what lives in them? `live`: pids by model."""
        mains = {int(self.service.manager.properties(unit)["MainPID"]) for unit in self.services()}
        servers, backends = self.service.lemonade_server(), self.in_lemonade(live)
        return {
            "units": mains == servers | {pid for name, pid in live.items() if self.models[name].home == "systemd"},
            "lemonade": self.service.lemonade() == servers | backends and len(servers) >= bool(backends),
        }

    def in_lemonade(self, live: dict[str, int]) -> set[int]:
        """The backends of the Lemonade Server."""
        return {pid for name, pid in live.items() if self.models[name].home == "lemonade"}

    def services(self) -> set[str]:
        return {unit for unit in self.service.model_units() if unit.endswith(".service")}


def is_zombie(process: psutil.Process, parent: int) -> bool:
    return bool(process.info["status"] == psutil.STATUS_ZOMBIE and process.info["ppid"] == parent)


def name_of(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def unheeded(function: Callable[..., object], *arguments: object) -> None:
    """What becomes of it does not matter: the daemon goes meanwhile."""
    try:
        function(*arguments)
    except (OSError, http.client.HTTPException, ValueError):
        return
