"""The seams: small Protocols through which the rooms reach the outside, passed in by constructor.

Time is monotonic everywhere and in seconds; nothing here may read the wall clock. The fakes live in tests/fakes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from accelerd.base import names


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds from an arbitrary start, never going back."""
        ...


class SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()


@dataclass(frozen=True)
class Roots:
    """Where accelerd's files live. Nothing else in the program spells these paths."""

    config_file: Path
    runtime: Path  # $XDG_RUNTIME_DIR/accelerd, 0700
    state: Path  # $XDG_STATE_HOME/accelerd
    cache: Path  # $XDG_CACHE_HOME/accelerd
    home: Path
    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    dev: Path = Path("/dev")

    @property
    def control_socket(self) -> Path:
        return self.runtime / names.CONTROL_SOCKET

    @property
    def instances(self) -> Path:
        return self.runtime / names.INSTANCE_DIR

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Roots:
        """The XDG directories of this user; $ACCELERD_CONFIG names another configuration file."""
        env = os.environ if env is None else env
        home = Path(env.get("HOME") or Path.home())

        def xdg(variable: str, default: Path) -> Path:
            value = env.get(variable, "")
            return Path(value) if value.startswith("/") else default  # the spec: relative values are ignored

        config_home = xdg("XDG_CONFIG_HOME", home / ".config")
        runtime_home = xdg("XDG_RUNTIME_DIR", Path(f"/run/user/{os.getuid()}"))
        config = env.get(names.ENV_CONFIG)
        return cls(
            config_file=Path(config) if config else config_home / names.CONFIG_DIR / names.CONFIG_FILE,
            runtime=runtime_home / names.RUNTIME_DIR,
            state=xdg("XDG_STATE_HOME", home / ".local/state") / names.STATE_DIR,
            cache=xdg("XDG_CACHE_HOME", home / ".cache") / names.CACHE_DIR,
            home=home,
        )
