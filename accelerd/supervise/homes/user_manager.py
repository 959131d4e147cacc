"""The user's service manager (systemd --user) over the session bus; the state of a unit from its properties; and what a
model's transient unit is called and which properties it gets, from settings to systemd's words.

Nothing here decides what runs. No secret may come into a unit's properties: whoever asks systemd can read them.
"""

from __future__ import annotations

import asyncio
import signal
import string
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from msgspec import Struct

from accelerd.config.model import ModelSpec
from accelerd.supervise.homes.home import short_hash
from accelerd.supervise.process.processes import InstanceTag
from accelerd.system.dbus.client import BusClient, BusError
from accelerd.system.dbus.port import Variant

UNIT_EXISTS: Final = "org.freedesktop.systemd1.UnitExists"
NO_SUCH_UNIT: Final = "org.freedesktop.systemd1.NoSuchUnit"

UnitProperty = tuple[str, str, Any]  # name, D-Bus signature, value


# Read in this order: if there was no job any more, the state that is read after it is the job's result; and if that
# state is final, so is everything that is read later.
UNIT_PROPERTIES: Final = ("Job", "ActiveState", "ActiveEnterTimestampMonotonic")
SERVICE_PROPERTIES: Final = (
    "MainPID",
    "ExecMainPID",
    "ExecMainCode",
    "ExecMainStatus",
    "Result",
    "ControlGroup",
)

_CLD_EXITED: Final = 1


class UnitState(Struct, frozen=True):
    """A service unit at one moment."""

    active: str  # "inactive", "activating", "active", "deactivating", "failed"
    began: bool  # its program has been executed
    queued: bool  # it has a job
    main_pid: int | None  # while it runs
    first_pid: int | None  # of the main process, also after its end
    status: int | None  # of the main process: exit status, or minus the signal
    result: str  # "success", "exit-code", "signal", "core-dump", "oom-kill", "timeout", "resources", …
    cgroup: str

    @classmethod
    def parse(cls, properties: Mapping[str, Any]) -> UnitState:
        """From the properties that `show` returns."""
        code, status = properties["ExecMainCode"], properties["ExecMainStatus"]
        return cls(
            active=properties["ActiveState"],
            began=properties["ActiveEnterTimestampMonotonic"] != 0,
            queued=properties["Job"][0] != 0,
            main_pid=properties["MainPID"] or None,
            first_pid=properties["ExecMainPID"] or None,
            status=None if code == 0 else status if code == _CLD_EXITED else -status,
            result=properties["Result"],
            cgroup=properties["ControlGroup"],
        )

    @property
    def over(self) -> bool:
        """No process of it runs or is about to start."""
        return self.active in ("inactive", "failed") and not self.queued

    @property
    def trouble(self) -> str | None:
        """How it ended, if that is more than its exit status."""
        return self.result if self.over and self.result != "success" else None


T = TypeVar("T")

CALL_TIMEOUT: Final = 5.0  # s for one answer of the manager
SCOPE_STOP: Final = 100_000  # µs that the manager waits for what cannot be killed
NAME: Final = "org.freedesktop.systemd1"
PATH: Final = "/org/freedesktop/systemd1"
MANAGER: Final = f"{NAME}.Manager"
UNIT: Final = f"{NAME}.Unit"
SERVICE: Final = f"{NAME}.Service"
NOT_REFERENCED: Final = f"{NAME}.NotReferenced"
NO_UNIT_FOR_PID: Final = f"{NAME}.NoUnitForPID"


class UserManager:
    """All methods raise BusError, within a few seconds, and never block the event loop. What `ref` holds is held until
    the connection to the bus ends."""

    def __init__(self, bus: BusClient, timeout: float = CALL_TIMEOUT) -> None:
        self._bus = bus
        self._timeout = timeout

    async def start(self, unit: str, properties: Sequence[UnitProperty]) -> None:
        """Start a transient unit. Returns once the job is queued."""
        given = [(name, Variant(signature, value)) for name, signature, value in properties]
        await self._call("start a unit", "StartTransientUnit", "(ssa(sv)a(sa(sv)))", unit, "fail", given, [])

    async def take_out(self, scope: str, pid: int, description: str) -> None:
        """Have a process of this user in a scope of its own: the end of the unit that it is in does not wait for it."""
        await self.start(
            scope,
            [
                ("Description", "s", description),
                ("PIDs", "au", [pid]),
                ("TimeoutStopUSec", "t", SCOPE_STOP),
                ("CollectMode", "s", "inactive-or-failed"),
            ],
        )

    async def show(self, unit: str) -> Mapping[str, Any] | None:
        """The properties of UNIT_PROPERTIES, then of SERVICE_PROPERTIES, in their order; None: no such unit."""
        wanted = [(UNIT, name) for name in UNIT_PROPERTIES] + [(SERVICE, name) for name in SERVICE_PROPERTIES]

        async def ask() -> Mapping[str, Any]:
            path = await self._path(unit)
            # all at once: they are sent, and answered, in this order
            values = await asyncio.gather(*(self._property(path, interface, name) for interface, name in wanted))
            return {name: value for (_, name), value in zip(wanted, values, strict=True)}

        return await _unless(ask(), NO_SUCH_UNIT)

    async def stored(self, unit: str) -> int:
        """How many file descriptors of the service the manager keeps."""
        return int(await self._property(await self._path(unit), SERVICE, "NFileDescriptorStore"))

    async def stop(self, unit: str) -> None:
        await _unless(self._call("stop a unit", "StopUnit", "(ss)", unit, "replace"), NO_SUCH_UNIT)

    async def kill(self, unit: str, number: int) -> None:
        await _unless(self._call("kill a unit", "KillUnit", "(ssi)", unit, "all", number), NO_SUCH_UNIT)

    async def reset_failed(self, unit: str) -> None:
        await _unless(self._call("reset a unit", "ResetFailedUnit", "(s)", unit), NO_SUCH_UNIT)

    async def ref(self, unit: str) -> None:
        """Keep the unit loaded after it has ended."""
        await self._call("reference a unit", "RefUnit", "(s)", unit)

    async def unref(self, unit: str) -> None:
        """Has no effect without a reference."""
        await _unless(self._call("release a unit", "UnrefUnit", "(s)", unit), NO_SUCH_UNIT, NOT_REFERENCED)

    async def environment(self) -> list[str]:
        """The environment that every unit inherits: "NAME=value"."""
        return list(await self._property(PATH, MANAGER, "Environment"))

    async def listens(self, unit: str) -> list[str] | None:
        """Where a socket unit listens by its files, as "127.0.0.1:4000"; None: there is no such unit."""
        path = (await self._call("look up a unit", "LoadUnit", "(s)", unit))[0]
        if await self._property(path, UNIT, "LoadState") != "loaded":
            return None
        return [address for _, address in await self._property(path, f"{NAME}.Socket", "Listen")]

    async def reload(self) -> None:
        """Read all unit files again."""
        await self._call("read the units again", "Reload", "()")

    async def unit_of(self, pid: int) -> str | None:

        async def ask() -> str:
            path = (await self._call("find the unit of a process", "GetUnitByPID", "(u)", pid))[0]
            return str(await self._property(path, UNIT, "Id"))

        return await _unless(ask(), NO_UNIT_FOR_PID)

    async def job_type(self, unit: str) -> str | None:
        """The type of the unit's job: "start", "stop", "restart", …; None without a job."""

        async def ask() -> str | None:
            number, job = await self._property(await self._path(unit), UNIT, "Job")
            return str(await self._property(job, f"{NAME}.Job", "JobType")) if number else None

        return await _unless(ask(), NO_SUCH_UNIT)

    # --- calls --------------------------------------------------------------------------------------------------

    async def _path(self, unit: str) -> str:
        return str((await self._call("look up a unit", "GetUnit", "(s)", unit))[0])

    async def _property(self, path: str, interface: str, name: str) -> Any:
        """One property: GetAll would cost a hundred others."""
        try:
            return await self._bus.get_property(NAME, path, interface, name, within=self._timeout)
        except BusError as error:
            raise BusError(f"cannot ask systemd for {name}: {error.message}", error.name) from None

    async def _call(self, what: str, method: str, signature: str, *values: Any) -> tuple[Any, ...]:
        try:
            return await self._bus.call(NAME, PATH, method, signature, *values, interface=MANAGER, within=self._timeout)
        except BusError as error:
            raise BusError(f"cannot {what}: {error.message}", error.name) from None


async def _unless(work: Awaitable[T], *names: str) -> T | None:
    """The result; None when it fails with one of these D-Bus errors."""
    try:
        return await work
    except BusError as error:
        if error.name in names:
            return None
        raise


PREFIX: Final = "accelerd-"
NAME_LENGTH: Final = 160  # of a model in the name of its unit, at most
SLICE: Final = "accelerd.slice"
INFINITY: Final = (1 << 64) - 1  # of systemd's limits
STOP_MARGIN: Final = 5  # s that systemd waits beyond the model's own stop_timeout before it kills
IO_CLASSES: Final = {"best-effort": 2, "idle": 3}  # as ioprio_set(2) numbers them
LOCKS_MEMORY: Final = ("flm", "lemonade")  # engines whose buffers for an NPU count as locked memory
READS_INPUT: Final = ("flm",)  # engines that take orders from their standard input
# Such a one finds the end of its input at once, and still holds the FIFO's reading end.
_WITHOUT_INPUT: Final = ("/bin/sh", "-c", 'exec "$@" 9<&0 </dev/null', "sh")
_PLAIN: Final = frozenset(f"{string.ascii_letters}{string.digits}:_.-")
# systemd's own additions to the environment; an engine gets what was planned and nothing else.
ADDED_BY_SYSTEMD: Final = (
    "HOME",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LANG",
    "LOGNAME",
    "MANAGERPID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "PATH",
    "SHELL",
    "SYSTEMD_EXEC_PID",
    "TERM",
    "USER",
    "XDG_RUNTIME_DIR",
)


def unit_name(model: str) -> str:
    """`accelerd-qwen.service`. Escaped as systemctl does it with what a person types, \\xNN; no other model has it."""
    return f"{PREFIX}{_short(model)}.service"


def second_name(model: str, tag: InstanceTag) -> str:
    """For when another unit has the name: unique, and known from the record of the instance."""
    return f"{PREFIX}{_short(model)}-{_escape(tag.instance)}.service"


def _short(model: str) -> str:
    """systemd allows 255 characters for a unit's name, one Chinese character takes twelve; and it allows no slash, for
    which there is a dash, as other models have one."""
    escaped = _escape(model)
    whole = len(escaped) <= NAME_LENGTH and "/" not in model
    return escaped if whole else f"{escaped[:NAME_LENGTH]}-{short_hash(model)}"


def _escape(text: str) -> str:
    plain = text.replace("/", "-")
    return "".join(c if c in _PLAIN else "".join(f"\\x{byte:02x}" for byte in c.encode()) for c in plain)


def _literally(word: str) -> str:
    """systemd would put the values of variables in place of $NAME, which are then seen in argv."""
    return word.replace("$", "$$")


def unit_properties(
    spec: ModelSpec,
    argv: Sequence[str],
    cwd: Path,
    *,
    environment_file: Path,
    unset: Iterable[str],
    output: Path,
    bound_to: str | None,
) -> list[UnitProperty]:
    """For StartTransientUnit. `argv[0]` is absolute; `bound_to`: the unit whose end shall be this one's too."""
    program = Path(argv[0]).name
    if spec.engine in READS_INPUT:
        argv = (*_WITHOUT_INPUT, *argv)
    properties: list[UnitProperty] = [
        ("Description", "s", f"model {spec.name} ({program})"),
        ("Slice", "s", SLICE),
        ("Type", "s", "exec"),  # started means: the program is executed and has read its environment
        # Not ExecStartEx with "no-env-expand": systemd 252 cannot read back what it writes down of that, and after a
        # daemon-reload the unit has "a bad unit file setting".
        ("ExecStart", "a(sasb)", [(argv[0], [_literally(word) for word in argv], False)]),
        ("WorkingDirectory", "s", str(cwd)),
        ("EnvironmentFiles", "a(sb)", [(str(environment_file), False)]),
        ("UnsetEnvironment", "as", sorted(unset)),
        # The same file for both makes systemd open it for reading and writing: the engine itself holds a reading end
        # and gets no SIGPIPE while no daemon reads.
        ("StandardInputFile", "s", str(output)),
        ("StandardOutputFile", "s", str(output)),
        ("StandardError", "s", "inherit"),
        ("UMask", "u", 0o077),
        ("KillMode", "s", "control-group"),
        ("KillSignal", "i", int(signal.SIGTERM)),
        ("TimeoutStopUSec", "t", int((spec.stop_timeout + STOP_MARGIN) * 1_000_000)),
        ("LimitCORE", "t", 0),  # a core holds prompts
        ("LimitCORESoft", "t", 0),
        ("NoNewPrivileges", "b", True),
        ("OOMPolicy", "s", "kill"),
        ("OOMScoreAdjust", "i", spec.oom_score_adjust),
        # While AddRef's reference is held its end can be read; without it nothing is left, not even of a failed one.
        ("CollectMode", "s", "inactive-or-failed"),
        ("AddRef", "b", True),
    ]
    if spec.engine in LOCKS_MEMORY:  # beyond its own hard limit the user's systemd gives that, and no error
        properties += [("LimitMEMLOCK", "t", INFINITY), ("LimitMEMLOCKSoft", "t", INFINITY)]
    limits: list[UnitProperty] = [
        ("MemoryMax", "t", spec.memory_max),
        ("MemoryHigh", "t", spec.memory_high),
        ("CPUWeight", "t", spec.cpu_weight),
        ("Nice", "i", spec.nice),
        ("IOSchedulingClass", "i", IO_CLASSES.get(spec.io_class or "")),
        ("TasksMax", "t", spec.tasks_max),
    ]
    properties += [limit for limit in limits if limit[2] is not None]
    if bound_to is not None:
        properties += [("StopPropagatedFrom", "as", [bound_to]), ("After", "as", [bound_to])]
    return properties
