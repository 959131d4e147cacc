"""What a model's transient unit is called and which properties it gets: from settings to systemd's words. Pure.

No secret may come in here: whoever asks systemd can read a unit's properties.
"""

from __future__ import annotations

import signal
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from accelerd.config.model import ModelSpec
from accelerd.supervise.homes.home import short_hash
from accelerd.supervise.homes.user_manager import UnitProperty
from accelerd.supervise.process.processes import InstanceTag

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
    """`accelerd-qwen.service`. Escaped as systemctl does it with what a person types: / is -, others are \\xNN."""
    return f"{PREFIX}{_short(model)}.service"


def second_name(model: str, tag: InstanceTag) -> str:
    """For when another unit has the name: unique, and known from the record of the instance."""
    return f"{PREFIX}{_short(model)}-{_escape(tag.instance)}.service"


def _short(model: str) -> str:
    """systemd allows 255 characters for a unit's name; one Chinese character takes twelve."""
    escaped = _escape(model)
    return escaped if len(escaped) <= NAME_LENGTH else f"{escaped[:NAME_LENGTH]}-{short_hash(model)}"


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
