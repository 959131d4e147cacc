"""The home "systemd": a model in a transient unit of the user's service manager, `accelerd-<model>.service` in
`accelerd.slice`, where it outlives the daemon and systemd keeps its limits.

Starts and adopts; what runs and when it ends is decided elsewhere. Secrets go by a file that is removed as soon as the
program is executed.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Final

from accelerd.base.cgroup import find_cgroup
from accelerd.base.ports import Roots
from accelerd.config.model import ModelSpec
from accelerd.supervise.homes.home import HomeError, InstanceRecord, LaunchRequest, MainProcess
from accelerd.supervise.homes.transient_unit import ADDED_BY_SYSTEMD, second_name, unit_name, unit_properties
from accelerd.supervise.homes.unit_process import UnitMainProcess
from accelerd.supervise.homes.user_manager import UNIT_EXISTS, UnitState, UserManager
from accelerd.supervise.instance_files import InstanceFiles
from accelerd.supervise.process.output_reader import OutputReader
from accelerd.supervise.process.processes import InstanceTag, Process, ProcessTable, ProcTable
from accelerd.supervise.process.spawn import NoProgram, find_program
from accelerd.system.dbus.client import BusError

log = logging.getLogger(__name__)

START_TIMEOUT: Final = 15.0  # s from the order to the executed program
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


class SystemdHome:
    """A Home."""

    kind = "systemd"
    survives = True

    def __init__(self, manager: UserManager, roots: Roots, table: ProcessTable | None = None) -> None:
        self._manager = manager
        self._roots = roots
        self._table = table or ProcTable(roots.proc)

    def place(self, spec: ModelSpec, tag: InstanceTag) -> str:
        return unit_name(spec.name)

    async def prepare(self, spec: ModelSpec, on_output: Callable[[bytes], None]) -> None:
        """Nothing to do: programs are this machine's."""

    # --- start --------------------------------------------------------------------------------------------------

    async def start(
        self, launch: LaunchRequest, on_output: Callable[[bytes], None], on_exit: Callable[[], None]
    ) -> MainProcess:
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
            files.write_environment(launch.env)
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

    async def adopt(
        self, record: InstanceRecord, on_output: Callable[[bytes], None], on_exit: Callable[[], None]
    ) -> MainProcess | None:
        members = {process.pid: process for process in await self._members(record.tag)}
        for unit in (record.place, second_name(record.model, record.tag)):
            try:
                properties = await self._manager.show(unit)
                state = UnitState.parse(properties) if properties is not None else None
                if state is None or state.main_pid not in members:
                    continue
                await self._manager.ref(unit)
                pidfd = await self._hold(unit, state)
            except BusError as error:
                raise HomeError(f"cannot take over {record.model}: {error}") from None
            return await self._take_over(unit, state, pidfd, members[state.main_pid], record, on_output, on_exit)
        return None

    async def _take_over(
        self,
        unit: str,
        state: UnitState,
        pidfd: int | None,
        process: Process,
        record: InstanceRecord,
        on_output: Callable[[bytes], None],
        on_exit: Callable[[], None],
    ) -> MainProcess | None:
        files = InstanceFiles(self._roots.instances, record.tag)
        same = False
        try:
            # The pidfd holds the unit's main process; start time and tag prove that it is the right one.
            same = pidfd is not None and process in await self._members(record.tag)
            if same:
                descriptor = await asyncio.to_thread(files.open_output, self._roots.proc, process.pid)
                return self._main(unit, state, pidfd, files, OutputReader(descriptor, on_output), on_exit)
        except OSError as error:
            same = False
            raise HomeError(f"cannot take over {record.model}: {error}") from None
        finally:
            if not same and pidfd is not None:
                os.close(pidfd)
        return None

    async def _members(self, tag: InstanceTag) -> list[Process]:
        return await asyncio.to_thread(self._table.members, tag, None)

    # --- both ---------------------------------------------------------------------------------------------------

    def _main(
        self,
        unit: str,
        state: UnitState,
        pidfd: int | None,
        files: InstanceFiles,
        output: OutputReader,
        on_exit: Callable[[], None],
    ) -> UnitMainProcess:
        return UnitMainProcess(
            unit,
            state.main_pid or state.first_pid or 0,
            pidfd,
            manager=self._manager,
            cgroup=find_cgroup(self._roots.sys, state.cgroup),
            files=files,
            output=output,
            on_exit=on_exit,
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
