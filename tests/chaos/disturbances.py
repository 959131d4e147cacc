"""What else may happen to a daemon than what tests/daemon/rounds.py does, and worlds in which all of it happens.

Each disturbance does its harm, undoes what a person would have to undo, and leaves the rest to accelerd.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.chaos import lemonade
from tests.chaos.clients import Client
from tests.daemon.kit import marked, side_by_side
from tests.daemon.rounds import Kind, World, unheeded
from tests.daemon.service import Service
from tests.daemon.test_toolbox_rounds import ContainerWorld
from tests.harness import UnixConnection, eventually

MANAGER = ("org.accelerd1", "/org/accelerd1", "org.accelerd1.Manager")
BAD_LINES = ("[models.", "[nonsense]\nx = 1\n", "[models.bad]\npath = 5\n", '[models.bad]\nhome = "moon"\n', "\0")
# Those that end the daemon, whose memory can then not be watched.
ENDINGS = {"kill_daemon", "terminate_daemon", "restart", "stop_and_start", "end_in_the_middle"}
HOMES = {
    "unit": Kind("systemd"),
    "slow": Kind("systemd", "slow-load:0.3"),
    "deaf": Kind("systemd", "ignore-term", {"stop_timeout": 0.2}),
    "stream": Kind("systemd", "slow-token:20"),
    "child": Kind("child", "slow-token:20"),
    **lemonade.models(),
}


class DisturbedWorld(World):
    """A World with more that may happen to it. `lasting`: nothing ends its daemon."""

    patience = 120.0  # toolboxes that start while the machine has much to do take long

    def __init__(
        self, service: Service, models: dict[str, Kind], *, tcp: bool, seed: int, lasting: bool = False
    ) -> None:
        super().__init__(service, models, tcp=tcp, seed=seed)
        self.engines = lemonade.engines()
        lemonade.prepare(service)
        self.deeds += [
            self.terminate_daemon, self.freeze, self.fill_the_disk, self.storm_of_configurations,
            self.storm_of_clients, self.storm_of_clients, self.storm_of_callers, self.restart_the_broker,
            self.kill_lemonade,
        ]  # fmt: skip
        if lasting:
            self.deeds = [deed for deed in self.deeds if deed.__name__ not in ENDINGS]

    def terminate_daemon(self) -> None:
        self.done.append("SIGTERM to the daemon")
        self.kept.clear()  # it is not to come again, as far as systemd says
        self.service.back(self.service.kill("TERM"))

    def freeze(self) -> None:
        """The daemon or an engine stops for a while, and others ask."""
        status = self.service.status()
        who = self.chance.choice([("the daemon", status), *((m["name"], m) for m in status["models"] if m["pid"])])
        name = self.any(f"SIGSTOP to {who[0]}, request to")
        pid = int(who[1]["pid"])
        os.kill(pid, signal.SIGSTOP)
        with side_by_side() as do:
            do(unheeded, self.service.chat, name)
            time.sleep(self.chance.uniform(0, 1.5))
            os.kill(pid, signal.SIGCONT)

    def kill_lemonade(self) -> None:
        """The server of several models ends: all of them do, and others go on."""
        self.done.append("kill the Lemonade Server")
        for pid in self.service.lemonade_server():
            self.service.manager.run(["kill", "-KILL", str(pid)])
            eventually(lambda pid=pid: not psutil.pid_exists(pid), "its end")

    def fill_the_disk(self) -> None:
        """No file of the daemon and its children may grow."""
        self.done.append("disk full")
        daemon = self.service.status()["pid"]
        before = {process.pid for process in marked(self.service)}
        loads = self.chance.sample(sorted(self.models), 2)
        with self._size_of_files(daemon, "0"), side_by_side() as do:
            for name in loads:
                do(unheeded, self.service.events, f"load?model={name}")
            do(unheeded, self.service.control, "POST", "reload")
            do(unheeded, self.service.chat, self.chance.choice(sorted(self.models)))
        for process in marked(self.service):
            if process.pid not in before:  # it has the limit from its parent
                with contextlib.suppress(psutil.Error):
                    process.kill()
        self.kept = {name: pid for name, pid in self.kept.items() if pid in before and name not in loads}
        self.reset()

    @contextlib.contextmanager
    def _size_of_files(self, pid: int, limit: str) -> Iterator[None]:
        """Nothing that the process writes may be longer than that: for it, the disk is full."""
        prlimit = ["prlimit", f"--pid={pid}"]
        self.service.manager.run([*prlimit, f"--fsize={limit}:"])
        yield
        self.service.manager.run([*prlimit, "--fsize=unlimited:"], check=False)  # it may have ended

    def storm_of_configurations(self) -> None:
        """Many reloads, good and bad, and nothing changes: what runs goes on."""
        bad = [self.chance.random() < 0.6 for _ in range(self.chance.randint(3, 10))]
        self.done.append(f"{len(bad)} reloads, {sum(bad)} with mistakes")
        for mistaken in bad:
            self.service.configure(self.toml() + (self.chance.choice(BAD_LINES) if mistaken else ""))
            if self.chance.random() < 0.5:
                answer = self.service.control("POST", "reload")
                assert (answer.status == 200) is not mistaken, answer.body
            else:
                os.kill(int(self.service.status()["pid"]), signal.SIGHUP)
        self.service.configure(self.toml())
        assert self.service.control("POST", "reload").status == 200

    def storm_of_clients(self) -> None:
        """Clients that leave, while something else happens."""
        clients = Client.some(self.chance, sorted(self.models), self.chance.randint(5, 40))
        others = [self.freeze, self.storm_of_configurations, self.kill_engine, self.storm_of_callers]
        if self.restart in self.deeds:
            others += [self.kill_daemon, self.restart]
        self.done.append(f"{len(clients)} clients, and")
        with side_by_side() as do:
            for client in clients:
                do(client.run, self.service.port)
            self.chance.choice(others)()
        self.kept.clear()  # a request for one model may put another away
        self.reset()

    def storm_of_callers(self) -> None:
        """Callers of the bus and readers of the event stream, most of whom leave before the end."""
        calls = [(self.any("LoadModel"), self.chance.uniform(0, 0.4)) for _ in range(self.chance.randint(2, 6))]
        with contextlib.ExitStack() as stack, side_by_side() as do:
            for _ in range(8):
                reader = stack.enter_context(contextlib.closing(UnixConnection(self.service.control_socket)))
                unheeded(reader.request, "GET", "/accelerd/v1/events")
            for name, patience in calls:
                do(self._call, name, patience)
        for name, _ in calls:
            self.kept.pop(name, None)
        self.reset()

    def _call(self, model: str, patience: float) -> None:
        argv = ["busctl", "--user", "call", *MANAGER, "LoadModel", "sa{sv}", model, "0"]
        with self.service.manager.popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as caller:
            time.sleep(patience)
            caller.kill()

    def restart_the_broker(self) -> None:
        """The session bus goes and comes: accelerd is on the next one, and models live on."""
        how = self.chance.choice(["restart", "kill"])
        self.done.append(f"{how} the broker")
        argv = ["kill", "--signal=KILL"] if how == "kill" else ["restart"]
        self.service.manager.systemctl(*argv, "dbus.service")
        call = ["busctl", "--user", "get-property", *MANAGER, "Version"]
        eventually(
            lambda: self.service.manager.run(call, check=False).returncode == 0, "it is on the next bus", self.patience
        )
        # a disk that was full may have left another reason, which passes by itself
        degraded = lambda: self.service.status()["degraded"] or ""  # noqa: E731
        eventually(lambda: "session bus" not in degraded(), "it knows that it is", self.patience)

    def reset(self) -> None:
        """What a person does about models that failed while the disk was full or the machine overrun."""
        for model in self.service.status()["models"]:
            if model["state"] in ("failed", "backoff"):
                unheeded(self.service.control, "POST", f"reset?model={model['name']}")

    def warm_up(self) -> None:
        """Connections that are made once are made, and no model is loaded."""
        self.crowd()
        self.storm_of_callers()
        self.restart_the_broker()
        self.unload_all()

    def unload_all(self) -> None:
        for name in self.models:
            self.service.events(f"unload?model={name}&force=1")
        eventually(lambda: not self.wrong(), "it is at rest", self.patience)

    def counts(self) -> dict[str, int]:
        """What a daemon holds that is at rest and has no model."""
        self.unload_all()
        status = self.service.status()
        return {
            "leases": sum(model["leases"] for model in status["models"]) + status["scheduler"]["queue"],
            "bytes in the ledger": status["scheduler"]["memory_used"],
            "residues": len(status["scheduler"]["residues"]),
        }

    def descriptors(self) -> Counter[str]:
        """What the daemon has open, without numbers and the tags of instances. Asking it would open one more."""
        pid, found = self.service.main_pid(), Counter[str]()
        sockets = {one.fd: f"socket {one.laddr} {one.status}" for one in psutil.Process(pid).net_connections("all")}
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found[re.sub(r"[0-9a-f]*\d[0-9a-f]*", "N", sockets.get(int(entry.name)) or str(entry.readlink()))] += 1
        return found

    def left(self) -> dict[str, int]:
        """What is there after the daemon was stopped."""
        self.service.stop_all()
        with contextlib.suppress(AssertionError):
            eventually(self.service.nothing_left, "nothing is left", self.patience)
        files = self.service.files()
        return {
            "processes": len(marked(self.service)),
            "units": len(self.service.model_units()),
            "processes of Lemonade": len(self.service.lemonade()),
            "sockets": sum(name.endswith(".sock") for name in files),
            "other files of models": sum(not name.endswith(".sock") for name in files),
        }


class DisturbedContainerWorld(DisturbedWorld, ContainerWorld):
    """The same with toolboxes and containers."""

    def left(self) -> dict[str, int]:
        found = super().left()
        return found | {
            "containers": len(self.service.own_containers()),
            "exec sessions": len(self.service.sessions()),
            "processes beside containers": len(self.service.couriers()),
        }
