"""The composition root: the only place that makes concrete objects and wires them to each other. Holds no behaviour."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from accelerd.base import names
from accelerd.base.events import DegradationChanged, EventStream
from accelerd.base.exits import Exit
from accelerd.base.ports import Clock, Roots, SystemClock
from accelerd.bus.service import BusService, make_exporter
from accelerd.config import Config
from accelerd.config.model import ConfigApplied, ModelSpec
from accelerd.control.configured_models import ConfiguredModels, limits_of
from accelerd.control.devices import DeviceLooks
from accelerd.control.jobs import Jobs
from accelerd.control.known_conflicts import KnownConflicts
from accelerd.control.model_info import ModelInfo
from accelerd.control.offered_models import OfferedModels
from accelerd.control.parts import ControlParts
from accelerd.control.state_store import StateStore
from accelerd.control.tuning_runs import TuningRuns
from accelerd.devices.current_devices import DeviceWatch
from accelerd.devices.inventory import Inventory
from accelerd.devices.keeper import LevelKeeper, read_level
from accelerd.devices.model import Device
from accelerd.devices.observer import DeviceObserver
from accelerd.devices.setters import DirectSetter, HelperSetter, LevelSetters, OtherTools
from accelerd.devices.udev import UdevSource
from accelerd.devices.udev_events import PyudevMonitor
from accelerd.engines.base import Endpoint, Engine, LaunchPlan
from accelerd.engines.command import Command
from accelerd.engines.flm.engine import Flm
from accelerd.engines.lemonade import Lemonade
from accelerd.engines.lemonade.catalogue import Catalogue
from accelerd.engines.llama_server import LlamaServer
from accelerd.engines.remote import RemoteEngine
from accelerd.engines.remote.remotes import Remotes
from accelerd.engines.vllm.engine import Vllm
from accelerd.gateway.gateway import Gateway
from accelerd.gateway.health import DeviceHealth
from accelerd.gateway.listeners import Listeners
from accelerd.memory.learned import Learned
from accelerd.memory.measure import Meter
from accelerd.memory.psi import StallTrigger, pressure_files
from accelerd.memory.reclaim import Reclaimer
from accelerd.memory.watch import MemoryWatch
from accelerd.policy import takeover
from accelerd.policy.battery import PowerSaving
from accelerd.policy.clock_boost import ClockBoost
from accelerd.policy.device_loss import DeviceLoss
from accelerd.policy.downloads import ModelDownloads
from accelerd.policy.engine_queues import EngineQueues
from accelerd.policy.event_log import EventLog, StatusLine
from accelerd.policy.hung_disks import HungDisks
from accelerd.policy.memory_pressure import MemoryPressureRelief
from accelerd.policy.notifications import DesktopNotifications
from accelerd.policy.pins import Pins
from accelerd.policy.remote_idle import RemoteIdle
from accelerd.policy.runtime_directory import RuntimeDirectory
from accelerd.policy.sleep import SleepPolicy
from accelerd.policy.socket_unit import SocketUnit
from accelerd.policy.takeover import Successor
from accelerd.policy.toolbox_models import ToolboxModels
from accelerd.policy.yielding import Yielding, boot_id
from accelerd.scheduler.events import ModelInUse
from accelerd.scheduler.exit_handling import STUCK_AFTER
from accelerd.scheduler.service import Scheduler
from accelerd.supervise.homes.child_home import ChildHome
from accelerd.supervise.homes.choice import HomeChoice, container_lookup
from accelerd.supervise.homes.containers.commands import CommandRunner
from accelerd.supervise.homes.containers.existing_container import ExistingHome
from accelerd.supervise.homes.containers.images import Builds
from accelerd.supervise.homes.containers.maintenance import ToolboxMaintenance
from accelerd.supervise.homes.containers.new_container import RunHome
from accelerd.supervise.homes.containers.podman_docker import ContainerEngine
from accelerd.supervise.homes.containers.process_tree import ContainerSessions
from accelerd.supervise.homes.containers.refresh_context import RefreshContext, RefreshRecord
from accelerd.supervise.homes.containers.toolbox import DistroboxHome, ToolboxHome
from accelerd.supervise.homes.home import Home
from accelerd.supervise.homes.lemonade.home import LemonadeHome
from accelerd.supervise.homes.systemd_home import SystemdHome
from accelerd.supervise.homes.user_manager import UserManager
from accelerd.supervise.process.processes import ProcessTable
from accelerd.supervise.supervisor import ProcessSupervisor
from accelerd.supervise.waiting import SupervisorLimits
from accelerd.system.activation import sd_listen_fds
from accelerd.system.dbus.client import BusClient, Buses, session_bus_address
from accelerd.system.dbus.object_exporter import ObjectExporter
from accelerd.system.desktop_notifications import NotificationSender
from accelerd.system.desktop_state import watch_battery, watch_games
from accelerd.system.private_files import AtomicFile
from accelerd.system.sd_notify import Notifier, Watchdog
from accelerd.system.suspend import SleepGuard, time_asleep
from accelerd.tuning.tuner import RuleTuner

MakeHomes = Callable[[Roots, UserManager | None], dict[str, Home]]


class Parts(ControlParts):
    """All that a daemon is made of, wired. Subscribers hear an event in the order in which they are made here."""

    def __init__(
        self,
        roots: Roots,
        config: Config,
        make: MakeHomes | None = None,
        *,
        patience: SupervisorLimits | None = None,
        stuck_after: float = STUCK_AFTER,
        source: UdevSource | None = None,
        memory_roots: Roots | None = None,
    ) -> None:
        """`patience` and `stuck_after`: others than the supervisor's and the scheduler's own; `source`: of devices,
        instead of udev; `memory_roots`: where memory is measured, instead of `roots`."""
        self.passed = passed = sd_listen_fds()
        self.roots = roots
        self.clock = clock = SystemClock()
        self.events = events = EventStream()
        self.notifier = Notifier.from_env()
        self.watchdog = Watchdog(self.notifier)
        self.state = state = StateStore(roots.state / names.STATE_FILE)
        state.read()
        event_log = EventLog(events)
        self.devices = devices = DeviceWatch(Inventory(roots, source).scan, PyudevMonitor(), events)
        tuner = RuleTuner(roots.config_file, devices.current, roots.sys)

        # models and their processes
        self.buses = buses = Buses.from_env()  # closed last
        manager = user_manager(roots, buses.session)
        homes = (make or make_homes)(roots, manager)
        self.homes = HomeChoice(homes, manager)
        self.remotes = remotes = Remotes(clock.monotonic, os.environ, events.publish)
        self.make_engines = partial(engines_of, roots, homes, tuner, devices.current, remotes)
        self.engines = engines = self.make_engines(config)
        self.scheduler = scheduler = Scheduler(
            clock, config.scheduler, limits_of(config), events, asleep=time_asleep, stuck_after=stuck_after
        )
        self.status_line = StatusLine(self.notifier, scheduler, events)
        self.supervisor = supervisor = ProcessSupervisor(
            scheduler,
            engines,
            roots,
            clock,
            homes=homes,
            choose=self.homes,
            sink=event_log.engine_line,
            limits=patience,
        )
        self.successor = Successor(manager, self.notifier)
        self.hung_disks = HungDisks(manager)
        learned = Learned(state.learned, state.learn)
        self.model_info = ModelInfo(engines, state, roots, devices.current, learned, events)
        self.conflicts = KnownConflicts(scheduler.snapshots, supervisor, devices.current, events)

        # memory
        measured = memory_roots or roots
        meter = Meter(
            measured,
            clock,
            DeviceObserver(measured, clock),
            reserve=config.memory.reserve,
            gpu_reserve=config.memory.gpu_reserve,
        )
        self.memory = memory = MemoryWatch(
            meter,
            devices.current,
            supervisor.process_finder,
            events,
            clock,
            moving=scheduler.memory_moves,
            working=scheduler.busy,
            stall=StallTrigger(pressure_files(measured)),
        )
        events.subscribe(ModelInUse, memory.on_model_in_use)
        scheduler.attach(supervisor, self.model_info, memory.want, Reclaimer(memory.look, clock, events))
        events.subscribe(ConfigApplied, meter.on_config)

        # policies
        MemoryPressureRelief(scheduler.memory, clock, config.memory, events)
        DeviceLoss(scheduler, events)
        self.yielding = Yielding(
            scheduler.memory,
            clock,
            time_asleep,
            devices.current,
            AtomicFile(roots.runtime / names.YIELD_FILE),
            boot_id(roots.proc),
            partial(watch_games, buses.session),
            events,
        )
        self.notifications = DesktopNotifications(NotificationSender(buses.session, clock), events)
        self.sleep = SleepPolicy(scheduler, self.yielding, devices.rescan, partial(SleepGuard, buses.system), events)
        self.remote_idle = RemoteIdle(remotes, events)
        self.power = PowerSaving(partial(watch_battery, buses.system), events)
        self.clock_boost = make_clock_boost(roots, clock, buses.system, devices, scheduler, events)
        self.models = ConfiguredModels(config, scheduler, self.model_info, self.power, events)
        self.downloads = ModelDownloads(scheduler, self.model_info.best_forecast, events)

        # control
        self.jobs = Jobs(clock, events)
        self.pins = Pins(scheduler.holds, clock, events)
        self.device_looks = DeviceLooks(DeviceObserver(roots, clock), devices.current)
        self.level_owner = self.clock_boost.owner
        self.tuning_runs = TuningRuns(scheduler, self.models.try_out, engines, tuner)
        self.upkeep = toolbox_upkeep(roots, homes, clock, state, ToolboxModels(scheduler, supervisor))
        self.gateway = Gateway(clock, scheduler, engines, events, remotes)
        self.gateway.devices = lambda: [
            DeviceHealth(one.id, one.kind, one.name, one.problem) for one in devices.current()
        ]
        self.gateway.monitor.plan_of = self._plan_of
        self.gateway.router.waiting_inside = EngineQueues(self._plan_of, events).waiting
        self.router = self.gateway.router
        self.offered = OfferedModels(remotes, self.router, self.models, events)
        self.router.integrated = lambda id: any(device.apu is True for device in devices.current() if device.id == id)
        self.socket_unit = SocketUnit(manager, self.notifier, events)
        sockets = self.socket_unit
        self.listeners = Listeners(
            self.gateway, config.server, passed, roots.control_socket, sockets.release, sockets.store
        )
        self.runtime_directory = RuntimeDirectory(
            roots, self.listeners.restore_control, supervisor.sockets, self.models.relaunch, supervisor.write_records
        )
        exporter = session_exporter(buses.session, events)
        self.bus_service = BusService(exporter, str(roots.runtime))

    def _plan_of(self, model: str) -> LaunchPlan | None:
        instance = self.scheduler.snapshot(model).instance
        facts = self.supervisor.facts(instance) if instance is not None else None
        return facts.plan if facts is not None else None

    def degraded(self) -> tuple[str | None, ...]:
        """What parts of it cannot do on this machine."""
        return (
            self.state.degraded, self.devices.degraded, self.memory.degraded, self.bus_service.degraded,
            self.runtime_directory.problem,
        )  # fmt: skip


def engines_of(
    roots: Roots,
    homes: Mapping[str, Home],
    tuner: RuleTuner,
    devices: Callable[[], Sequence[Device]],
    remotes: Remotes,
    settings: Config,
) -> dict[str, Engine]:
    """The engines for a configuration, by name."""
    built = roots.cache / "llama-server" / "current" / "bin"  # where packaging/build-llama-server puts one
    llama_server = LlamaServer(
        settings.llama_server,
        cache=roots.cache / "features",
        search=(built,),
        places=container_lookup(homes),
        tuner=tuner,
        devices=devices,
        limit=settings.scheduler.memory,
    )
    lemonade = homes.get(LemonadeHome.kind)
    catalogue = lemonade.catalogue if isinstance(lemonade, LemonadeHome) else Catalogue()
    return {
        "llama-server": llama_server,
        "command": Command(places=container_lookup(homes)),
        "vllm": Vllm(places=container_lookup(homes)),
        "remote": RemoteEngine(settings.remotes, remotes.known),
        "flm": Flm(settings.flm, proc=roots.proc),
        "lemonade": Lemonade(
            settings.lemonade, catalogue, llama=partial(llama_server.features, ModelSpec("lemonade")), devices=devices
        ),
    }


def session_exporter(bus: BusClient, events: EventStream) -> ObjectExporter | None:
    """Our objects on the bus of this user; None where there is no bus."""
    kind, _, path = session_bus_address().partition("path=")
    if names.ENV_SESSION_BUS not in os.environ and kind == "unix:" and not os.path.exists(path):
        return None
    return make_exporter(bus, partial(events.publish, DegradationChanged()))


def make_clock_boost(
    roots: Roots, clock: Clock, bus: BusClient, devices: DeviceWatch, scheduler: Scheduler, events: EventStream
) -> ClockBoost:
    """Levels are set by the helper, else by the daemon itself where it may."""
    direct = DirectSetter(roots.sys, roots.runtime)
    setters, read = LevelSetters([HelperSetter(bus), direct]), partial(read_level, roots.sys)
    keeper = LevelKeeper(clock, setters, read, OtherTools(bus))
    return ClockBoost(keeper, direct, devices.current, scheduler.placed, events)


def user_manager(roots: Roots, bus: BusClient) -> UserManager | None:
    """The user's systemd, where there is one; whether it answers is seen later."""
    return UserManager(bus) if (roots.runtime.parent / "systemd" / "private").exists() else None


def make_homes(roots: Roots, manager: UserManager | None) -> dict[str, Home]:
    """Where models may live on this machine, by kind."""
    clock, table, tools = SystemClock(), ProcessTable(roots.proc), CommandRunner()
    engines = [ContainerEngine(name, tools) for name in ("podman", "docker")]
    survives = manager is not None
    found: list[Home] = [
        ChildHome(proc=roots.proc, sys=roots.sys),
        ToolboxHome(roots, clock, table, tools, survives=survives),
        DistroboxHome(roots, clock, table, tools, survives=survives),
        ExistingHome(roots, clock, tools, engines, survives=survives),
    ]
    found += [RunHome(engine, roots, clock, table, survives=survives) for engine in engines]
    if manager is not None:
        found.append(SystemdHome(manager, roots))
    homes = {home.kind: home for home in found}
    return {**homes, LemonadeHome.kind: LemonadeHome(roots, clock, homes, table=table)}


def toolbox_upkeep(
    roots: Roots, homes: Mapping[str, Home], clock: SystemClock, state: StateStore, models: ToolboxModels
) -> ToolboxMaintenance:
    """The care of the user's toolboxes, behind the same doors as the starts of models in them."""
    tools, toolbox = CommandRunner(), homes.get("toolbox")
    if not isinstance(toolbox, ToolboxHome):
        toolbox = ToolboxHome(roots, clock, ProcessTable(roots.proc), tools, survives=False)
    engine = ContainerEngine("podman", tools)
    kit = RefreshContext(
        tools,
        engine,
        Builds(engine, toolbox.inside),
        ContainerSessions(roots.proc, str(roots.runtime)),
        toolbox.locks,
        models,
        RefreshRecord(roots.state / names.TOOLBOX_FILE, roots.proc),
        clock,
    )
    return ToolboxMaintenance(kit, state)


class NoListener:
    """The Listener of a supervisor that starts nothing."""

    def instance_ready(self, instance: int, endpoint: Endpoint, secret: str) -> None: ...
    def instance_gone(self, instance: int, exit: Exit) -> None: ...
    def instance_killing(self, instance: int) -> None: ...
    def instance_probed(self, instance: int, ok: bool) -> None: ...
    def instance_asleep(self, instance: int, trouble: str) -> None: ...
    def instance_awake(self, instance: int, trouble: str) -> None: ...


async def reap(roots: Roots) -> None:
    """`accelerd --reap`: end what an accelerd that is no more has left. Needs no configuration."""
    buses = Buses.from_env()
    manager = user_manager(roots, buses.session)
    supervisor = ProcessSupervisor(NoListener(), {}, roots, SystemClock(), homes=make_homes(roots, manager))
    direct = DirectSetter(roots.sys, roots.runtime)

    async def sweep() -> int:
        await direct.repair()
        return await supervisor.sweep_leftovers()

    try:
        await takeover.reap(roots.runtime / names.LOCK_FILE, sweep)
    finally:
        await direct.close()
        await buses.close()
