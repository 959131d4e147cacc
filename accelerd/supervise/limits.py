"""How patient the supervise room is, in one place. Times in seconds, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SupervisorSettings:
    """Passed in by constructor; the defaults are what the daemon runs with."""

    port_retries: int = 3  # further plans when an endpoint was taken
    load_cap: float = 10.0  # times start_timeout: loading takes no longer, whatever progress is seen
    growth: int = 1 << 20  # of resident memory that counts as progress
    probe_timeout: float = 30.0  # a busy engine answers late
    journal_rate: int = 50  # lines of output a second and model
    # killing what does not go
    slow_after: float = 1.0  # of killing, until the listener is told
    loud_after: float = 5.0  # of killing, until the log says so …
    loud_every: float = 60.0  # … and how often after that
    close_patience: float = 2.0  # after the last SIGKILL of a closing daemon
    # instances and processes of an earlier daemon
    adopt_patience: float = 15.0  # until one that was ready answers to the next daemon
    leftover_grace: float = 5.0  # from SIGTERM to SIGKILL
    leftover_patience: float = 5.0  # from SIGKILL until they are left alone
