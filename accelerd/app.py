"""The composition root: the only place that makes concrete objects and wires them to each other. Holds no behaviour."""

from __future__ import annotations

from collections.abc import Callable

from accelerd import names, takeover
from accelerd.chronicle import Chronicle, status_line
from accelerd.config import Config, Problem, check
from accelerd.config.model import LlamaServerSettings
from accelerd.daemon import Daemon, Parts, limits_of
from accelerd.devices import inventory
from accelerd.engines.base import Endpoint, Engine
from accelerd.engines.llama_server import LlamaServer
from accelerd.errors import AccelError
from accelerd.gateway.control import Control
from accelerd.gateway.gateway import Gateway
from accelerd.gateway.listeners import Listeners
from accelerd.insight import Insight, fingerprint
from accelerd.instances import Exit
from accelerd.ports import Roots, SystemClock
from accelerd.scheduler.service import Scheduler
from accelerd.supervise.child_home import ChildHome
from accelerd.supervise.containers.engine import ContainerEngine
from accelerd.supervise.containers.existing import ExistingHome
from accelerd.supervise.containers.places import HomePlaces
from accelerd.supervise.containers.run import RunHome
from accelerd.supervise.containers.tool import Tools
from accelerd.supervise.containers.toolbox import DistroboxHome, ToolboxHome
from accelerd.supervise.home import Home
from accelerd.supervise.homes import HomeChoice
from accelerd.supervise.limits import Limits as SupervisorLimits
from accelerd.supervise.processes import ProcTable
from accelerd.supervise.supervisor import ProcessSupervisor
from accelerd.supervise.systemd import SystemdHome
from accelerd.supervise.user_manager_bus import BusUserManager
from accelerd.system.activation import bind_tcp, bind_unix, classify, sd_listen_fds
from accelerd.system.lock import InstanceLock
from accelerd.system.notify import Notifier, Watchdog
from accelerd.system.startup import EXIT_CONFIG, StartError
from accelerd.system.state import StateStore
from accelerd.system.suspend import time_asleep
from accelerd.takeover import NoSuccessor, UnitSuccessor
from accelerd.trials import Trials
from accelerd.tuning.tuner import RuleTuner

MakeHomes = Callable[[Roots, BusUserManager | None], dict[str, Home]]


async def serve(roots: Roots, homes: MakeHomes | None = None) -> None:
    """One daemon from its first to its last moment. StartError when it cannot begin."""
    config, problems = check(roots.config_file, roots.home)
    if config is None:
        lines = "\n  ".join(str(problem) for problem in problems)
        raise StartError(f"the configuration is not valid:\n  {lines}", status=EXIT_CONFIG)
    with InstanceLock.acquire(roots.runtime / names.LOCK_FILE):
        daemon = build(roots, config, problems, homes)
        try:
            await daemon.run()
        except AccelError as error:  # a key file that cannot be read
            raise StartError(error.message, status=EXIT_CONFIG) from None


def build(
    roots: Roots,
    config: Config,
    problems: list[Problem],
    make: MakeHomes | None = None,
    *,
    patience: SupervisorLimits | None = None,
) -> Daemon:
    """Everything, wired. `patience`: another one than the supervisor's own."""
    given = classify(sd_listen_fds())
    bound = None if given.tcp else bind_tcp(config.server.listen)
    unix = given.unix_sockets or [bind_unix(roots.control_socket)]
    clock = SystemClock()
    notifier = Notifier.from_env()
    state = StateStore(roots.state / names.STATE_FILE)
    state.read()
    manager = user_manager(roots)
    homes = (make or make_homes)(roots, manager)
    choice = HomeChoice(homes, manager)
    places = HomePlaces(homes)

    def llama_server(settings: LlamaServerSettings) -> LlamaServer:
        built = roots.cache / "llama-server" / "current" / "bin"  # where packaging/build-llama-server puts one
        return LlamaServer(settings, cache=roots.cache / "features", search=(built,), places=places, tuner=tuner)

    tuner = RuleTuner(roots.config_file, lambda: inventory(roots), roots.sys)

    engines: dict[str, Engine] = {"llama-server": llama_server(config.llama_server)}
    chronicle = Chronicle(
        notifier,
        status=lambda: status_line(scheduler.snapshots(), scheduler.memory_held()),
        loaded=lambda spec, seconds: state.remember_load(fingerprint(spec), seconds),
        retire=lambda instance: gateway.upstreams.retire(instance),
    )
    scheduler = Scheduler(clock, config.scheduler, limits_of(config), witness=chronicle, asleep=time_asleep)
    supervisor = ProcessSupervisor(
        scheduler, engines, roots, clock, homes=homes, choose=choice, sink=chronicle.engine_line, limits=patience
    )
    insight = Insight(supervisor, engines, state, roots)
    scheduler.attach(supervisor, insight)
    gateway = Gateway(clock, scheduler, {name: engine.dialect for name, engine in engines.items()})
    trials = Trials(scheduler, lambda spec, of: daemon.try_out(spec, of), engines, tuner)
    parts = Parts(
        roots=roots,
        clock=clock,
        notifier=notifier,
        watchdog=Watchdog(notifier),
        state=state,
        engines=engines,
        scheduler=scheduler,
        supervisor=supervisor,
        homes=choice,
        successor=UnitSuccessor(manager) if manager is not None else NoSuccessor(),
        close=manager.close if manager is not None else lambda: None,
        insight=insight,
        gateway=gateway,
        listeners=Listeners(gateway, config.server),
        trials=trials,
        tcp=given.tcp_sockets or (list(bound.sockets) if bound else []),
        unix=unix,
    )
    daemon = Daemon(parts, config, [*problems], llama_server)
    gateway.control = Control(scheduler, insight, daemon, trials)
    return daemon


def user_manager(roots: Roots) -> BusUserManager | None:
    """The user's systemd, where there is one; whether it answers is seen later."""
    return BusUserManager.from_env() if (roots.runtime.parent / "systemd" / "private").exists() else None


def make_homes(roots: Roots, manager: BusUserManager | None) -> dict[str, Home]:
    """Where models may live on this machine, by kind."""
    clock, table, tools = SystemClock(), ProcTable(roots.proc), Tools()
    survives = manager is not None
    found: list[Home] = [
        ChildHome(proc=roots.proc, sys=roots.sys),
        ToolboxHome(roots, clock, table, tools, survives=survives),
        DistroboxHome(roots, clock, table, tools, survives=survives),
        ExistingHome(roots, clock, tools, survives=survives),
    ]
    for name in ("podman", "docker"):
        found.append(RunHome(ContainerEngine(name, tools), roots, clock, table, survives=survives))
    if manager is not None:
        found.append(SystemdHome(manager, roots))
    return {home.kind: home for home in found}


class Deaf:
    """The Listener of a supervisor that starts nothing."""

    def instance_ready(self, instance: int, endpoint: Endpoint, secret: str) -> None: ...
    def instance_gone(self, instance: int, exit: Exit) -> None: ...
    def instance_killing(self, instance: int) -> None: ...
    def instance_probed(self, instance: int, ok: bool) -> None: ...


async def reap(roots: Roots) -> None:
    """`accelerd --reap`: end what an accelerd that is no more has left. Needs no configuration."""
    manager = user_manager(roots)
    supervisor = ProcessSupervisor(Deaf(), {}, roots, SystemClock(), homes=make_homes(roots, manager))
    try:
        await takeover.reap(roots.runtime / names.LOCK_FILE, supervisor.sweep_leftovers)
    finally:
        if manager is not None:
            manager.close()
