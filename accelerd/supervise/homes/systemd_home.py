"""The home "systemd": a model in a transient unit of the user's service manager, `accelerd-<model>.service` in
`accelerd.slice`, where it outlives the daemon and systemd keeps its limits.

Starts and adopts; what runs and when it ends is decided elsewhere. Secrets go by a file that is removed as soon as the
program is executed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import Final

from accelerd.base.cgroup import Cgroup, find_cgroup
from accelerd.base.ports import Roots
from accelerd.config.model import ModelSpec
from accelerd.supervise.homes.home import (
    Home,
    HomeError,
    InstanceRecord,
    LaunchRequest,
    MainProcess,
    NoProgram,
    OnExit,
    OnOutput,
    find_program,
)
from accelerd.supervise.homes.user_manager import (
    ADDED_BY_SYSTEMD,
    UNIT_EXISTS,
    UnitState,
    UserManager,
    second_name,
    unit_name,
    unit_properties,
)
from accelerd.supervise.instance_records import InstanceFiles, environment_text
from accelerd.supervise.process.output import OutputReader
from accelerd.supervise.process.processes import InstanceTag, ProcessTable, hold
from accelerd.system.dbus.client import BusError

log = logging.getLogger(__name__)

START_TIMEOUT: Final = 15.0  # s from the order to the executed program
LOUD_AFTER: Final = 5.0  # s from the exit of the main process until a unit that does not end is logged …
LOUD_EVERY: Final = 60.0  # … and how often after that
FORGETS_WITHIN: Final = 5  # tries, 10 ms apart
OWN_STATUSES: Final = range(200, 246)  # a process in which systemd could not execute the program
EXIT_EXEC: Final = 203
# What systemd's own exit statuses mean where a person can do something, see systemd.exec(5).
FAILED_STEPS: Final = {
    200: "its working directory cannot be entered",
    201: "its nice value is not allowed (LimitNICE=)",
    206: "its oom_score_adjust is not allowed: it is lower than that of the user's systemd",
    211: "its io_class is not allowed",
    219: "its control group cannot be made",
}


class SystemdHome(Home):
    kind = "systemd"
    survives = True

    def __init__(self, manager: UserManager, roots: Roots, table: ProcessTable | None = None) -> None:
        self._manager = manager
        self._roots = roots
        self._table = table or ProcessTable(roots.proc)

    def place(self, spec: ModelSpec, tag: InstanceTag) -> str:
        return unit_name(spec.name)

    # --- start --------------------------------------------------------------------------------------------------

    async def start(self, launch: LaunchRequest, on_output: OnOutput, on_exit: OnExit) -> MainProcess:
        program = await asyncio.to_thread(find_program, launch.argv[0], launch.env.get("PATH"))
        files = InstanceFiles(self._roots.instances, launch.tag)
        descriptor = await asyncio.to_thread(self._prepare, launch, files)
        asked: list[str] = []  # the units that systemd may have because of this
        try:
            async with asyncio.timeout(START_TIMEOUT):
                unit = await self._launch(launch, program, files, asked)
                state = await self._executed(unit, program)
                pidfd = await self._hold(unit, state)
        except BaseException as error:
            os.close(descriptor)
            await self._undo(asked, files)
            if isinstance(error, TimeoutError):
                raise HomeError(f"cannot start {launch.spec.name}: systemd does not start its unit in time") from None
            if isinstance(error, BusError):
                raise HomeError(f"cannot start {launch.spec.name}: {error}") from None
            raise
        finally:
            # Without it a start that systemd has put off until later fails, so that no process comes unexpected.
            files.environment.unlink(missing_ok=True)
        return self._main(unit, state, pidfd, files, OutputReader(descriptor, on_output), on_exit)

    def _prepare(self, launch: LaunchRequest, files: InstanceFiles) -> int:
        """Environment and FIFO; the FIFO's reading end. Blocking."""
        try:
            files.write_environment(environment_text(launch.env))
            files.make_output()
            return files.open_output(self._roots.proc)
        except (OSError, ValueError) as error:
            files.environment.unlink(missing_ok=True)
            files.output.unlink(missing_ok=True)
            raise HomeError(f"cannot start {launch.spec.name}: {error}") from None

    async def _launch(self, launch: LaunchRequest, program: str, files: InstanceFiles, asked: list[str]) -> str:
        """Give systemd the unit; the name it got. BusError, HomeError."""
        inherited = {entry.partition("=")[0] for entry in await self._manager.environment()}
        properties = unit_properties(
            launch.spec,
            (program, *launch.argv[1:]),
            launch.cwd,
            environment_file=files.environment,
            unset=(inherited | set(ADDED_BY_SYSTEMD)) - set(launch.env),
            output=files.output,
            bound_to=None if launch.spec.survive else await self._own_unit(),
        )
        for unit in (unit_name(launch.spec.name), second_name(launch.spec.name, launch.tag)):
            for _ in range(FORGETS_WITHIN):
                asked.append(unit)
                try:
                    await self._manager.start(unit, properties)
                except BusError as error:
                    if error.name != UNIT_EXISTS:
                        raise
                else:
                    return unit
                asked.remove(unit)
                found = await self._manager.show(unit)
                if found is not None and not UnitState.parse(found).over:
                    break  # it lives
                # Left over from an earlier run: systemd forgets it in a moment, unless a file describes it.
                await self._forget(unit)
                await asyncio.sleep(0.01)
            log.warning("the unit name %s is taken", unit)
        raise HomeError(f"cannot start {launch.spec.name}: the name of its unit is taken")

    async def _own_unit(self) -> str | None:
        """The service that this daemon is, if it is one."""
        unit = await self._manager.unit_of(os.getpid())
        return unit if unit is not None and unit.endswith(".service") else None

    async def _executed(self, unit: str, program: str) -> UnitState:
        """The unit as soon as its program has been executed, which may be over by then. Raises when it never was."""
        delay = 0.002
        while True:
            properties = await self._manager.show(unit)
            if properties is None:
                raise HomeError(f"cannot start {program}: systemd has forgotten {unit}")
            state = UnitState.parse(properties)
            if state.began and state.active != "activating":
                return state
            if state.over and state.status is not None and state.status not in OWN_STATUSES:
                return state  # it exited before systemd recorded its start
            if state.over:
                break
            await asyncio.sleep(delay)
            delay = min(delay * 1.5, 0.1)
        if state.status == EXIT_EXEC:
            raise NoProgram(
                f"cannot start {program}: systemd cannot execute it (is its interpreter there, is it for this machine?)"
            )
        why = FAILED_STEPS.get(state.status or 0, f"{state.result}, status {state.status}")
        raise HomeError(f"cannot start {program} in {unit}: {why}; see: systemctl --user status {unit}")

    async def _undo(self, asked: list[str], files: InstanceFiles) -> None:
        """After a start that failed."""
        files.output.unlink(missing_ok=True)
        for unit in asked:
            try:
                await self._manager.stop(unit)
                await self._forget(unit)
            except BusError as error:  # without its environment's file it cannot start any more
                log.warning("%s may be left: %s", unit, error)

    async def _forget(self, unit: str) -> None:
        await self._manager.reset_failed(unit)
        await self._manager.unref(unit)

    # --- adopt --------------------------------------------------------------------------------------------------

    async def adopt(self, record: InstanceRecord, on_output: OnOutput, on_exit: OnExit) -> MainProcess | None:
        found = await asyncio.to_thread(self._table.members, record.tag, None)
        members = {process.pid: process for process in found}
        for unit in (record.place, second_name(record.model, record.tag)):
            try:
                properties = await self._manager.show(unit)
                state = UnitState.parse(properties) if properties is not None else None
                if state is None or state.main_pid not in members:
                    continue
                await self._manager.ref(unit)
            except BusError as error:
                raise HomeError(f"cannot take over {record.model}: {error}") from None
            pidfd = hold(self._roots.proc, members[state.main_pid])
            if pidfd is None:
                return None
            files = InstanceFiles(self._roots.instances, record.tag)
            try:
                descriptor = await asyncio.to_thread(files.open_output, self._roots.proc, state.main_pid)
                return self._main(unit, state, pidfd, files, OutputReader(descriptor, on_output), on_exit)
            except BaseException as error:
                os.close(pidfd)
                if isinstance(error, OSError):
                    raise HomeError(f"cannot take over {record.model}: {error}") from None
                raise
        return None

    # --- both ---------------------------------------------------------------------------------------------------

    def _main(
        self,
        unit: str,
        state: UnitState,
        pidfd: int | None,
        files: InstanceFiles,
        output: OutputReader,
        on_exit: OnExit,
    ) -> UnitMainProcess:
        cgroup = find_cgroup(self._roots.sys, state.cgroup)
        return UnitMainProcess(
            unit, state, pidfd, manager=self._manager, cgroup=cgroup, files=files, output=output, on_exit=on_exit
        )

    async def _hold(self, unit: str, state: UnitState) -> int | None:
        """A pidfd of the unit's main process; None when that has exited, whoever has its pid now. BusError."""
        if state.main_pid is None:
            return None
        try:
            pidfd = os.pidfd_open(state.main_pid)
        except ProcessLookupError:
            return None
        # Its number is free for others only when systemd has reaped it, and then systemd says so.
        try:
            properties = await self._manager.show(unit)
            if properties is not None and UnitState.parse(properties).main_pid == state.main_pid:
                return pidfd
        except BaseException:
            os.close(pidfd)
            raise
        os.close(pidfd)
        return None


class UnitMainProcess(MainProcess):
    """The main process of a transient unit, and the unit's end. Owns `pidfd` and the reader.

    Signals go by pidfd and kills by control group, so both work while the bus is away; only the exit status and the
    reason are then not known. Not a child of the daemon: the number of its session may be used again once it has ended.
    """

    def __init__(
        self,
        unit: str,
        state: UnitState,
        pidfd: int | None,
        *,
        manager: UserManager,
        cgroup: Cgroup | None,
        files: InstanceFiles,
        output: OutputReader,
        on_exit: OnExit,
    ) -> None:
        super().__init__(on_exit)
        self.unit = self._name = unit
        self.pid = state.main_pid or state.first_pid or 0
        self._manager = manager
        self._cgroup = cgroup
        self._files = files
        self._output = output
        self._killing: asyncio.Task[None] | None = None
        self._hold(pidfd)

    def kill_group(self) -> None:
        """SIGKILL to the whole control group: by the kernel, or by systemd where the kernel cannot."""
        self.signal(signal.SIGKILL)
        if self._cgroup is not None and self._cgroup.kill():
            return
        if self._killing is None or self._killing.done():
            self._killing = asyncio.create_task(self._kill_unit(), name=f"kill of {self._name}")

    async def release(self) -> None:
        """Wait until the unit is over, learn how it ended, leave nothing of it."""
        try:
            await self._until_over()
        finally:
            self._output.finish()
            self.let_go()
        await asyncio.to_thread(self._files.output.unlink, missing_ok=True)

    def let_go(self) -> None:
        """Close the descriptors. The unit's own reference goes with the connection to the bus."""
        self._output.close()
        if self._killing is not None:
            self._killing.cancel()
        self._drop_pidfd()

    async def _kill_unit(self) -> None:
        try:
            await self._manager.kill(self._name, signal.SIGKILL)
        except BusError as error:
            log.warning("%s: %s", self._name, error)

    async def _until_over(self) -> None:
        began = self._loop.time()
        delay, loud_at = 0.002, began + LOUD_AFTER
        while True:
            try:
                if await self._look():
                    return
            except BusError as error:
                if self._cgroup is None or not self._cgroup.populated():
                    log.warning("cannot learn how %s ended: %s", self._name, error)
                    return
            self.kill_group()  # what the main process left: nobody but its control group knows it
            now = self._loop.time()
            if now > loud_at:
                loud_at = now + LOUD_EVERY
                log.error("%s does not end, %.0f s after its main process did", self._name, now - began)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 1.0)

    async def _look(self) -> bool:
        """Is the unit over? Then its end is noted and the unit let go. BusError."""
        properties = await self._manager.show(self._name)
        if properties is None:  # collected: the bus was away meanwhile, and with it the reference to the unit
            log.warning("cannot learn how %s ended: systemd has forgotten it", self._name)
            return True
        state = UnitState.parse(properties)
        if not state.over:
            return False
        self.status, self.result = state.status, state.trouble
        await self._manager.reset_failed(self._name)
        await self._manager.unref(self._name)
        return True
