"""The composition root: the only place that makes concrete objects and wires them to each other. Holds no behaviour."""

from __future__ import annotations

from accelerd import names
from accelerd.chronicle import Chronicle, status_line
from accelerd.config import Config, Problem, check
from accelerd.config.model import LlamaServerSettings
from accelerd.daemon import Daemon, Parts, limits_of
from accelerd.engines.base import Engine
from accelerd.engines.llama_server import LlamaServer
from accelerd.errors import AccelError
from accelerd.gateway.control import Control
from accelerd.gateway.gateway import Gateway
from accelerd.gateway.listeners import Listeners
from accelerd.insight import Insight, fingerprint
from accelerd.ports import Roots, SystemClock
from accelerd.scheduler.service import Scheduler
from accelerd.supervise.limits import Limits as SupervisorLimits
from accelerd.supervise.plain import PlainSupervisor
from accelerd.system.activation import bind_tcp, bind_unix, classify, sd_listen_fds
from accelerd.system.lock import InstanceLock
from accelerd.system.notify import Notifier, Watchdog
from accelerd.system.startup import EXIT_CONFIG, StartError
from accelerd.system.state import StateStore


async def serve(roots: Roots) -> None:
    """One daemon from its first to its last moment. StartError when it cannot begin."""
    config, problems = check(roots.config_file, roots.home)
    if config is None:
        lines = "\n  ".join(str(problem) for problem in problems)
        raise StartError(f"the configuration is not valid:\n  {lines}", status=EXIT_CONFIG)
    with InstanceLock.acquire(roots.runtime / names.LOCK_FILE):
        daemon = build(roots, config, problems)
        try:
            await daemon.run()
        except AccelError as error:  # a key file that cannot be read
            raise StartError(error.message, status=EXIT_CONFIG) from None


def build(roots: Roots, config: Config, problems: list[Problem], *, patience: SupervisorLimits | None = None) -> Daemon:
    """Everything, wired. `patience`: another one than the supervisor's own."""
    given = classify(sd_listen_fds())
    bound = None if given.tcp else bind_tcp(config.server.listen)
    unix = given.unix_sockets or [bind_unix(roots.control_socket)]
    clock = SystemClock()
    notifier = Notifier.from_env()
    state = StateStore(roots.state / names.STATE_FILE)
    state.read()

    def llama_server(settings: LlamaServerSettings) -> LlamaServer:
        built = roots.cache / "llama-server" / "current" / "bin"  # where packaging/build-llama-server puts one
        return LlamaServer(settings, cache=roots.cache / "features", search=(built,))

    engines: dict[str, Engine] = {"llama-server": llama_server(config.llama_server)}
    chronicle = Chronicle(
        notifier,
        status=lambda: status_line(scheduler.snapshots(), scheduler.memory_held()),
        loaded=lambda spec, seconds: state.remember_load(fingerprint(spec), seconds),
        retire=lambda instance: gateway.upstreams.retire(instance),
    )
    scheduler = Scheduler(clock, config.scheduler, limits_of(config), on_moved=chronicle.moved)
    supervisor = PlainSupervisor(scheduler, engines, roots, clock, sink=chronicle.engine_line, limits=patience)
    scheduler.attach(supervisor)
    gateway = Gateway(clock, scheduler, {name: engine.dialect for name, engine in engines.items()})
    insight = Insight(supervisor, engines, state, roots)
    parts = Parts(
        roots=roots,
        clock=clock,
        notifier=notifier,
        watchdog=Watchdog(notifier),
        state=state,
        engines=engines,
        scheduler=scheduler,
        supervisor=supervisor,
        insight=insight,
        gateway=gateway,
        listeners=Listeners(gateway, config.server),
        tcp=given.tcp_sockets or (list(bound.sockets) if bound else []),
        unix=unix,
    )
    daemon = Daemon(parts, config, [*problems], llama_server)
    gateway.control = Control(scheduler, insight, daemon)
    return daemon
