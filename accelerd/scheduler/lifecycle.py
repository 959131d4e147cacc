"""The life of a model as a literal table: {(state, event): state}. Nothing else may decide what follows what.

A pair that is not in the table is a bug in accelerd and raises InternalError. tests/scheduler walks the whole product
of states and events; docs/lifecycle.md is made from this table.
"""

from __future__ import annotations

from enum import StrEnum

from accelerd.base.errors import InternalError


class State(StrEnum):
    STOPPED = "stopped"  # no process, no memory
    DOWNLOADING = "downloading"  # no process, no memory: a request wants it, and its files are on their way
    STARTING = "starting"  # process asked for, not yet answering
    READY = "ready"  # grants leases
    DRAINING = "draining"  # grants no more leases, waits for the running ones
    OFFLOADING = "offloading"  # told to move its weights from the device to main memory
    ASLEEP = "asleep"  # its process lives, its weights are in main memory, the device has its memory back
    WAKING = "waking"  # admitted again: its weights move back to the device
    STOPPING = "stopping"  # asked to end (SIGTERM)
    KILLING = "killing"  # did not end in time, SIGKILL was sent; its memory still counts
    RECLAIMING = "reclaiming"  # no process is left, its memory is not back yet
    BACKOFF = "backoff"  # failed lately, waits before the next start
    FAILED = "failed"  # failed for good: until a person or the configuration changes something


class Event(StrEnum):
    DOWNLOAD = "download"  # a request wants it, and its files are not on this machine
    DOWNLOADED = "downloaded"  # they are
    START = "start"  # admitted: its memory is reserved
    ADOPT = "adopt"  # an earlier daemon started it: its memory is reserved, it is checked like a new one
    LOADED = "loaded"  # proven ready
    SLEEP = "sleep"  # it has main memory to sleep in
    SLEPT = "slept"  # it says that it is asleep, and the memory of its device is seen to be back
    WAKE = "wake"  # admitted again: the memory of its device is reserved
    DRAIN = "drain"
    STOP = "stop"
    KILL = "kill"  # SIGKILL was sent
    STUCK = "stuck"  # SIGKILL did not end it: its memory stays counted, its device takes no other model
    RECLAIM = "reclaim"  # all processes have ended, but the device still holds their memory
    GONE = "gone"  # all processes have ended, without a failure
    OUT_OF_MEMORY = "out-of-memory"  # ended because it ran out of memory: it reserves more next time
    BACK_OFF = "back-off"  # ended with a failure, will be tried again
    GIVE_UP = "give-up"  # ended with a failure, too often or in a way that a retry cannot cure
    RESET = "reset"  # failures forgotten


S, E = State, Event
TABLE: dict[tuple[State, Event], State] = {
    (S.STOPPED, E.DOWNLOAD): S.DOWNLOADING,
    (S.BACKOFF, E.DOWNLOAD): S.DOWNLOADING,
    (S.FAILED, E.DOWNLOAD): S.DOWNLOADING,
    (S.DOWNLOADING, E.DOWNLOADED): S.STOPPED,
    (S.DOWNLOADING, E.RESET): S.STOPPED,  # unloaded, or other files are wanted now
    (S.DOWNLOADING, E.BACK_OFF): S.BACKOFF,
    (S.DOWNLOADING, E.GIVE_UP): S.FAILED,
    (S.STOPPED, E.START): S.STARTING,
    (S.STOPPED, E.ADOPT): S.STARTING,
    (S.STARTING, E.LOADED): S.READY,
    (S.STARTING, E.SLEPT): S.ASLEEP,  # taken over from an earlier daemon, asleep
    (S.STARTING, E.STOP): S.STOPPING,
    (S.STARTING, E.KILL): S.KILLING,  # the load ran out of time
    (S.STARTING, E.RECLAIM): S.RECLAIMING,
    (S.STARTING, E.GONE): S.STOPPED,  # it was to be taken over and had exited already
    (S.STARTING, E.OUT_OF_MEMORY): S.STOPPED,
    (S.STARTING, E.BACK_OFF): S.BACKOFF,
    (S.STARTING, E.GIVE_UP): S.FAILED,
    (S.READY, E.DRAIN): S.DRAINING,
    (S.READY, E.STOP): S.STOPPING,
    (S.READY, E.KILL): S.KILLING,  # it exited and left processes that do not end
    (S.READY, E.RECLAIM): S.RECLAIMING,
    (S.READY, E.GONE): S.STOPPED,  # it exited; the next request starts it again
    (S.READY, E.OUT_OF_MEMORY): S.STOPPED,
    (S.READY, E.BACK_OFF): S.BACKOFF,
    (S.READY, E.GIVE_UP): S.FAILED,
    (S.DRAINING, E.SLEEP): S.OFFLOADING,
    (S.DRAINING, E.STOP): S.STOPPING,
    (S.DRAINING, E.KILL): S.KILLING,
    (S.DRAINING, E.RECLAIM): S.RECLAIMING,
    (S.DRAINING, E.GONE): S.STOPPED,
    (S.DRAINING, E.OUT_OF_MEMORY): S.STOPPED,
    (S.DRAINING, E.GIVE_UP): S.FAILED,  # out of memory too often
    (S.OFFLOADING, E.SLEPT): S.ASLEEP,
    (S.OFFLOADING, E.STOP): S.STOPPING,  # it cannot, or the device does not get its memory back
    (S.OFFLOADING, E.KILL): S.KILLING,
    (S.OFFLOADING, E.RECLAIM): S.RECLAIMING,
    (S.OFFLOADING, E.GONE): S.STOPPED,
    (S.ASLEEP, E.WAKE): S.WAKING,
    (S.ASLEEP, E.STOP): S.STOPPING,
    (S.ASLEEP, E.KILL): S.KILLING,
    (S.ASLEEP, E.RECLAIM): S.RECLAIMING,
    (S.ASLEEP, E.GONE): S.STOPPED,
    (S.ASLEEP, E.BACK_OFF): S.BACKOFF,
    (S.ASLEEP, E.GIVE_UP): S.FAILED,
    (S.WAKING, E.LOADED): S.READY,
    (S.WAKING, E.STOP): S.STOPPING,  # it did not wake up: it is started anew
    (S.WAKING, E.KILL): S.KILLING,
    (S.WAKING, E.RECLAIM): S.RECLAIMING,
    (S.WAKING, E.GONE): S.STOPPED,
    (S.WAKING, E.OUT_OF_MEMORY): S.STOPPED,
    (S.WAKING, E.BACK_OFF): S.BACKOFF,
    (S.WAKING, E.GIVE_UP): S.FAILED,
    (S.STOPPING, E.KILL): S.KILLING,
    (S.STOPPING, E.RECLAIM): S.RECLAIMING,
    (S.STOPPING, E.GONE): S.STOPPED,
    (S.STOPPING, E.OUT_OF_MEMORY): S.STOPPED,
    (S.STOPPING, E.BACK_OFF): S.BACKOFF,  # stopped because it was unhealthy
    (S.STOPPING, E.GIVE_UP): S.FAILED,
    (S.KILLING, E.STUCK): S.KILLING,
    (S.KILLING, E.RECLAIM): S.RECLAIMING,
    (S.KILLING, E.GONE): S.STOPPED,
    (S.KILLING, E.OUT_OF_MEMORY): S.STOPPED,
    (S.KILLING, E.BACK_OFF): S.BACKOFF,
    (S.KILLING, E.GIVE_UP): S.FAILED,
    (S.RECLAIMING, E.GONE): S.STOPPED,
    (S.RECLAIMING, E.OUT_OF_MEMORY): S.STOPPED,
    (S.RECLAIMING, E.BACK_OFF): S.BACKOFF,
    (S.RECLAIMING, E.GIVE_UP): S.FAILED,
    (S.BACKOFF, E.START): S.STARTING,
    (S.BACKOFF, E.RESET): S.STOPPED,
    (S.FAILED, E.START): S.STARTING,
    (S.FAILED, E.RESET): S.STOPPED,
}

# A process exists or may exist, or its memory is not back: it is on the ledger.
OCCUPIED = frozenset({
    S.STARTING, S.READY, S.DRAINING, S.OFFLOADING, S.ASLEEP, S.WAKING, S.STOPPING, S.KILLING, S.RECLAIMING,
})  # fmt: skip
# On the way out: the memory of its device will come back without another decision.
LEAVING = frozenset({S.DRAINING, S.OFFLOADING, S.STOPPING, S.KILLING, S.RECLAIMING})
# It serves nobody, and no request is lost when it is stopped.
WARM = frozenset({S.OFFLOADING, S.ASLEEP, S.WAKING})


def step(state: State, event: Event) -> State:
    """The state after `event`. InternalError for a pair that the table does not have."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise InternalError(f"event {event} is not allowed in state {state}") from None
