"""Why an instance ended, as an enum: no decision hangs on a message. accelctl reads it, too, so it imports little."""

from __future__ import annotations

from enum import StrEnum


class Cause(StrEnum):
    STOPPED = "stopped"  # asked to stop, whatever the exit status
    EXITED = "exited"  # by itself, with an exit status
    SIGNALED = "signaled"  # by a signal that accelerd did not send
    NO_PROGRAM = "no-program"  # binary missing or not executable
    NO_MODEL = "no-model"  # model file missing or unreadable
    NOT_DOWNLOADED = "not-downloaded"  # files of a hub's model that were here are not any more
    REFUSED = "refused"  # the plan could not be made: a setting this engine build does not know
    SPAWN_FAILED = "spawn-failed"  # fork or exec failed (EAGAIN, ENOMEM …)
    LOAD_TIMEOUT = "load-timeout"  # killed: not ready in time and no progress seen
    WITHOUT_MODEL = "without-model"  # killed: it came up, but refused the smallest request
    UNHEALTHY = "unhealthy"  # killed: answered health checks but no requests
    PORT_UNAVAILABLE = "port-unavailable"
    DEVICE_REMOVED = "device-removed"  # killed: its device disappeared
    DEVICE_RESET = "device-reset"  # killed: its device was reset, and its memory there is lost
    UNLOADED_BY_SERVER = "unloaded-by-server"  # the Lemonade Server unloaded it without being asked by accelerd
    OOM_KILLED = "oom-kill"  # killed by the kernel or systemd-oomd, or it exited because an allocation failed


# Trying again cannot help until a person changes something.
PERMANENT = frozenset({Cause.NO_PROGRAM, Cause.NO_MODEL, Cause.NOT_DOWNLOADED, Cause.REFUSED})
