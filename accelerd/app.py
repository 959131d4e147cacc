"""The composition root: the only place that makes concrete objects and wires them to each other. Holds no behaviour."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.base.exits import Exit
from accelerd.base.ports import Clock, Roots, SystemClock
from accelerd.bus.desk import BusService, ControlApi
from accelerd.config import Config, Problem, check
from accelerd.config.model import MemorySettings, ModelSpec
from accelerd.control.devices import DeviceRoutes
from accelerd.control.evict import Evicting
from accelerd.control.fit import FitRoutes
from accelerd.control.known_conflicts import KnownConflicts
from accelerd.control.model_info import ModelInfo
from accelerd.control.operations import rescanning
from accelerd.control.remembered import StateStore
from accelerd.control.routes import Control
from accelerd.control.toolboxes import ToolboxRoutes
from accelerd.control.tuning_runs import TuningRuns
from accelerd.control.yield_memory import MemoryRoutes
from accelerd.daemon import Daemon, Parts, limits_of
from accelerd.devices.gauge import Gauge
from accelerd.devices.inventory import Inventory
from accelerd.devices.keeper import LevelKeeper
from accelerd.devices.monitor import PyudevMonitor
from accelerd.devices.observer import Observer
from accelerd.devices.rivals import Rivals
from accelerd.devices.setters import Direct, Helper, Setters
from accelerd.devices.udev import UdevSource
from accelerd.devices.watch import DeviceWatch
from accelerd.engines.base import Endpoint, Engine
from accelerd.engines.flm.engine import Flm
from accelerd.engines.lemonade import Lemonade
from accelerd.engines.lemonade.catalogue import Catalogue
from accelerd.engines.llama_server import LlamaServer
from accelerd.gateway.gateway import Gateway
from accelerd.gateway.listeners import Listeners
from accelerd.memory.learned import Learned
from accelerd.memory.measure import Meter
from accelerd.memory.model import MemoryRequirement, MemorySnapshot
from accelerd.memory.reclaim import Reclaimer
from accelerd.memory.watch import MemoryWatch
from accelerd.policy import takeover
from accelerd.policy.clock_boost import ClockBoost
from accelerd.policy.device_loss import DeviceLoss
from accelerd.policy.event_log import EventLog, Witnesses, status_line
from accelerd.policy.memory_pressure import MemoryPressureRelief
from accelerd.policy.notifications import DesktopNotifications
from accelerd.policy.sleep_and_power import Battery, Desktop, Sleep
from accelerd.policy.takeover import NoSuccessor, UnitSuccessor
from accelerd.policy.toolbox_models import ToolboxModels
from accelerd.policy.yielding import Yielding, boot_id, gpu_pools
from accelerd.scheduler.exit_handling import STUCK_AFTER
from accelerd.scheduler.service import Scheduler
from accelerd.supervise.homes.child_home import ChildHome
from accelerd.supervise.homes.containers.builds import Builds
from accelerd.supervise.homes.containers.engine import ContainerEngine
from accelerd.supervise.homes.containers.existing import ExistingHome
from accelerd.supervise.homes.containers.maintenance_locks import MaintenanceLocks
from accelerd.supervise.homes.containers.people import People
from accelerd.supervise.homes.containers.places import HomePlaces
from accelerd.supervise.homes.containers.refresh_kit import Kit
from accelerd.supervise.homes.containers.refresh_record import RefreshRecord
from accelerd.supervise.homes.containers.run import RunHome
from accelerd.supervise.homes.containers.tool import Tools
from accelerd.supervise.homes.containers.toolbox import DistroboxHome, ToolboxHome
from accelerd.supervise.homes.containers.upkeep import ToolboxUpkeep
from accelerd.supervise.homes.home import Home
from accelerd.supervise.homes.homes import HomeChoice
from accelerd.supervise.homes.lemonade import LemonadeHome
from accelerd.supervise.homes.systemd import SystemdHome
from accelerd.supervise.homes.user_manager_bus import BusUserManager
from accelerd.supervise.limits import Limits as SupervisorLimits
from accelerd.supervise.process.processes import ProcTable
from accelerd.supervise.supervisor import ProcessSupervisor
from accelerd.system.activation import bind_tcp, bind_unix, classify, sd_listen_fds
from accelerd.system.battery import watch_battery
from accelerd.system.dbus.client import SystemBus, system_bus
from accelerd.system.dbus.exporter import SessionBus
from accelerd.system.dbus.properties import session_bus
from accelerd.system.gamemode import watch_games
from accelerd.system.inhibitor import SleepGuard
from accelerd.system.lock import InstanceLock
from accelerd.system.notifications import Notifications
from accelerd.system.notify import Notifier, Watchdog
from accelerd.system.startup import EXIT_CONFIG, StartError
from accelerd.system.statefile import AtomicFile
from accelerd.system.suspend import time_asleep
from accelerd.tuning.tuner import RuleTuner

BUS_PATIENCE = 2.0  # s for what the desktop answers: it stops nobody

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
    stuck_after: float = STUCK_AFTER,
    source: UdevSource | None = None,
    memory_roots: Roots | None = None,
) -> Daemon:
    """Everything, wired.

    `patience` and `stuck_after`: others than the supervisor's and the scheduler's own; `source`: of devices, instead of
    udev; `memory_roots`: where memory is measured, instead of `roots`.
    """
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

    def make_engines(settings: Config) -> dict[str, Engine]:
        built = roots.cache / "llama-server" / "current" / "bin"  # where packaging/build-llama-server puts one
        llama_server = LlamaServer(
            settings.llama_server,
            cache=roots.cache / "features",
            search=(built,),
            places=places,
            tuner=tuner,
            devices=lambda: devices.devices,
        )
        flm = Flm(settings.flm, devices=lambda: devices.devices, proc=roots.proc)
        tenants = homes.get("lemonade")
        catalogue = tenants.catalogue if isinstance(tenants, LemonadeHome) else Catalogue()
        return {"llama-server": llama_server, "flm": flm, "lemonade": Lemonade(settings.lemonade, catalogue)}

    tuner = RuleTuner(roots.config_file, lambda: devices.devices, roots.sys)

    engines = make_engines(config)

    def loaded(spec: ModelSpec, need: MemoryRequirement, seconds: float) -> None:
        insight.loaded(spec, need, seconds)
        daemon.loaded(spec)
        hazards.loaded(spec)

    def in_use(spec: ModelSpec, busy: bool) -> None:
        performance.in_use(spec, busy)
        desktop.in_use(busy)

    chronicle = EventLog(
        notifier,
        status=lambda: status_line(scheduler.snapshots(), scheduler.memory_held()),
        loaded=loaded,
        retire=lambda instance: gateway.upstreams.retire(instance),
        in_use=in_use,
        moved=lambda record, transition: desktop.moved(record, transition),
        lost=lambda residue: desktop.lost(residue),
    )
    devices = DeviceWatch(Inventory(roots, source).scan, PyudevMonitor())
    performance = make_performance(roots, clock, devices, lambda name: scheduler.placed(name))
    reclaimer = Reclaimer(lambda: memory.look(), clock)
    scheduler = Scheduler(
        clock,
        config.scheduler,
        limits_of(config),
        witness=Witnesses(chronicle, lambda: desk.tree),
        reclaim=reclaimer,
        asleep=time_asleep,
        stuck_after=stuck_after,
    )
    supervisor = ProcessSupervisor(
        scheduler, engines, roots, clock, homes=homes, choose=choice, sink=chronicle.engine_line, limits=patience
    )
    insight = ModelInfo(supervisor, engines, state, roots, lambda: devices.devices, Learned(state))
    hazards = KnownConflicts(scheduler.snapshots, insight, lambda: devices.devices)
    reserves = config.memory
    measured = memory_roots or roots
    meter = Meter(
        measured, clock, Observer(measured, clock), reserve=reserves.reserve, gpu_reserve=reserves.gpu_reserve
    )
    relief = MemoryPressureRelief(scheduler, clock, config.memory)
    yielding = make_yielding(roots, clock, scheduler, devices)
    desktop = make_desktop(clock, scheduler, yielding, devices, lambda: daemon.configure_models())

    def seen(look: MemorySnapshot) -> None:
        reclaimer.seen(look)
        scheduler.seen(look)
        relief.heard(look)
        desk.seen(look)

    def configure_memory(settings: MemorySettings) -> None:
        meter.keep_free(settings.reserve, settings.gpu_reserve)
        relief.configure(settings)
        yielding.configure(settings.yield_on)

    memory = MemoryWatch(
        meter, lambda: devices.devices, supervisor.processes, seen, clock, moving=scheduler.memory_moves
    )
    scheduler.attach(supervisor, insight, memory.want)
    DeviceLoss(devices, scheduler)
    desk = BusService(
        session_bus_of(lambda: desk.changed()),
        clock,
        scheduler,
        insight,
        lambda: devices.devices,
        lambda: daemon,
        lambda: wares,
        str(roots.runtime),
    )
    devices.listen(lambda diff: desk.changed())
    yielding.listen(desk.changed)
    gateway = Gateway(clock, scheduler, engines)
    upkeep = toolbox_upkeep(roots, homes, clock, state, ToolboxModels(scheduler, supervisor))
    trials = TuningRuns(scheduler, lambda spec: daemon.try_out(spec), engines, tuner)
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
        upkeep=upkeep,
        devices=devices,
        performance=performance,
        memory=memory,
        configure_memory=configure_memory,
        yielding=yielding,
        desktop=desktop,
        gateway=gateway,
        listeners=Listeners(gateway, config.server),
        desk=desk,
        trials=trials,
        tcp=given.tcp_sockets or (list(bound.sockets) if bound else []),
        unix=unix,
    )
    daemon = Daemon(parts, config, [*problems], make_engines)
    looks = DeviceRoutes(devices, Observer(roots, clock), scheduler, insight, performance.owner)
    fit = FitRoutes(
        scheduler,
        scheduler.ledger,
        memory.look,
        insight.learned,
        lambda spec: insight.forecast(spec, ask=True),
        yielded=yielding.report,
        degraded=lambda: memory.degraded,
    )
    giving = MemoryRoutes(yielding, scheduler)
    boxes = ToolboxRoutes(upkeep)
    routes = {**boxes.routes, **looks.routes, **giving.routes, **fit.routes}
    gateway.control = control = Control(scheduler, insight, daemon, trials, gateway.board, routes, hazards)
    evicting = Evicting(scheduler, lambda: devices.devices)
    wares = ControlApi(
        answers={**control.answers, **looks.answers, **fit.answers, **boxes.answers},
        actions={**control.actions, **fit.actions, **boxes.actions},
        operations={
            **control.operations,
            **giving.operations,
            **boxes.operations,
            **evicting.operations,
            "rescan": rescanning(devices.rescan),
        },
        check_evict=evicting.check,
        what_yields=lambda: yielding.what,
    )
    return daemon


def session_bus_of(changed: Callable[[], None]) -> SessionBus | None:
    """The bus of this user; None where there is none. `changed()`: its state is another."""
    address = session_bus()
    kind, _, path = address.partition("path=")
    if names.ENV_SESSION_BUS not in os.environ and kind == "unix:" and not os.path.exists(path):
        return None
    return SessionBus.from_env(changed=changed)


def make_yielding(roots: Roots, clock: Clock, scheduler: Scheduler, devices: DeviceWatch) -> Yielding:
    """Asked by people, by GameMode, and before the machine sleeps."""
    yielding = Yielding(
        scheduler,
        clock,
        time_asleep,
        lambda: gpu_pools(devices.devices),
        AtomicFile(roots.runtime / names.YIELD_FILE),
        boot_id(roots.proc),
        lambda one: {"gamemode": lambda: watch_games(one.games)},
    )
    devices.listen(lambda diff: yielding.devices_changed())
    return yielding


def make_desktop(
    clock: Clock, scheduler: Scheduler, yielding: Yielding, devices: DeviceWatch, again: Callable[[], None]
) -> Desktop:
    """logind, UPower and power-profiles-daemon on the system bus, notifications on the session bus."""
    bus = SystemBus(system_bus(), BUS_PATIENCE)
    news = DesktopNotifications(Notifications(SystemBus(session_bus(), BUS_PATIENCE, "session bus"), clock))
    sleep = Sleep(scheduler, yielding, devices.rescan)
    devices.listen(news.devices)
    return Desktop(sleep, SleepGuard(bus, sleep.before, sleep.after), Battery(watch_battery, again), news, bus.close)


def make_performance(roots: Roots, clock: Clock, devices: DeviceWatch, where: Callable[[str], str]) -> ClockBoost:
    """Levels are set by the helper, else by the daemon itself where it may. `where`: see Performance."""
    bus = SystemBus.from_env()
    gauge = Gauge(roots.sys)
    direct = Direct(roots.sys, roots.runtime)
    keeper = LevelKeeper(clock, Setters([Helper(bus), direct]), gauge, Rivals(bus))
    performance = ClockBoost(keeper, direct, lambda: devices.devices, where)
    devices.listen(lambda diff: performance.devices(diff.after))
    return performance


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
    homes = {home.kind: home for home in found}
    return {**homes, LemonadeHome.kind: LemonadeHome(roots, clock, homes, table=table)}


def toolbox_upkeep(
    roots: Roots, homes: Mapping[str, Home], clock: SystemClock, state: StateStore, models: ToolboxModels
) -> ToolboxUpkeep:
    """The care of the user's toolboxes, behind the same doors as the starts of models in them."""
    tools, toolbox = Tools(), homes.get("toolbox")
    engine = ContainerEngine("podman", tools)
    kit = Kit(
        tools,
        engine,
        Builds(engine, tools),
        People(roots.proc, str(roots.runtime)),
        toolbox.doors if isinstance(toolbox, ToolboxHome) else MaintenanceLocks(),
        models,
        RefreshRecord(roots.state / names.TOOLBOX_FILE, roots.proc),
        clock,
    )
    return ToolboxUpkeep(kit, state)


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
    direct = Direct(roots.sys, roots.runtime)

    async def sweep() -> int:
        await direct.repair()
        return await supervisor.sweep_leftovers()

    try:
        await takeover.reap(roots.runtime / names.LOCK_FILE, sweep)
    finally:
        await direct.close()
        if manager is not None:
            manager.close()
