"""An AMD GPU by its PCI slot, and its file power_dpm_force_performance_level: the only file that is ever written.

Arguments are not trusted: the slot must have the form of one, the device must be a display controller with the driver
amdgpu, and no link to the file is followed. What was written is read back.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

LEVELS: Final = ("auto", "low", "high")
FILE: Final = "power_dpm_force_performance_level"
DRIVER: Final = "amdgpu"
DISPLAY_CLASS: Final = "0x03"
ASLEEP: Final = ("suspended", "suspending")
_SLOT: Final = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_OWNED: Final = re.compile(r"manual|profile_[a-z_]+|perf_determinism")


class LevelError(Exception):
    """`code`: InvalidArgs, NoDevice, Unsupported, Owned, Refused, Busy, Failed; callers add their own."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def check_arguments(slot: str, level: str) -> None:
    """LevelError InvalidArgs unless both are valid."""
    if not _SLOT.fullmatch(slot):
        raise LevelError("InvalidArgs", "invalid slot; it must be like 0000:c1:00.0")
    if level not in LEVELS:
        raise LevelError("InvalidArgs", f"the level must be one of {', '.join(LEVELS)}")


class Gpu:
    """An open GPU; see `opened`."""

    def __init__(self, slot: str, directory: int) -> None:
        self.slot = slot
        self._directory = directory

    def level(self) -> str:
        """The level now. Does not wake a sleeping device: LevelError Busy."""
        if self._text("power/runtime_status") in ASLEEP:
            raise LevelError("Busy", f"{self.slot} is asleep")
        try:
            level = self._read(FILE)
        except OSError as error:
            code = "Unsupported" if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENODEV) else "Busy"
            reason = os.strerror(error.errno or 0)
            raise LevelError(code, f"cannot read the performance level of {self.slot}: {reason}") from None
        if not level:
            raise LevelError("Busy", f"{self.slot} does not report its performance level")
        return level

    def changeable(self) -> str:
        """The level now. LevelError Owned if clocks were set manually."""
        level = self.level()
        if _OWNED.fullmatch(level):
            raise LevelError("Owned", f"{self.slot} is at {level}: its clocks were set manually")
        if level not in LEVELS:
            raise LevelError("Unsupported", f"{self.slot} is at {level[:40]!r}, which is not a known level")
        return level

    def set(self, level: str) -> None:
        """Write and read back; restore the old level if it differs. LevelError Busy or Failed."""
        before = self.level()
        self._write(level)
        try:
            after = self.level()
        except LevelError as error:
            after = error.message
        if after != level:
            with suppress(LevelError):
                self._write(before)
            raise LevelError(
                "Failed", f"{self.slot} does not accept {level}: it is at {after[:80]!r}, {before} is restored"
            )

    def is_apu(self) -> bool:
        """Is it certainly an integrated GPU? Only for those the driver reports the voltage of the north bridge."""
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            hwmon = os.open("hwmon", flags, dir_fd=self._directory)
        except OSError:
            return False
        try:
            names = os.listdir(hwmon)
        finally:
            os.close(hwmon)
        return any(self._text(f"hwmon/{name}/in1_label") == "vddnb" for name in names)

    def _write(self, level: str) -> None:
        try:
            self._put(f"{level}\n".encode())
        except OSError as error:
            code = "Busy" if error.errno in (errno.EBUSY, errno.EAGAIN) else "Failed"
            raise LevelError(code, f"cannot set {self.slot} to {level}: {os.strerror(error.errno or 0)}") from None

    def _put(self, data: bytes) -> None:
        # O_TRUNC for the ordinary files of tests; sysfs ignores it
        file = os.open(FILE, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            os.write(file, data)
        finally:
            os.close(file)

    def _text(self, name: str) -> str | None:
        try:
            return self._read(name)
        except OSError:
            return None

    def _read(self, name: str) -> str:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            return os.read(file, 4096).decode(errors="replace").strip("\0 \n")
        finally:
            os.close(file)


@contextmanager
def opened(sys: Path, slot: str, kind: type[Gpu] = Gpu) -> Iterator[Gpu]:
    """The GPU in that slot, for the `with` block. LevelError InvalidArgs, NoDevice or Unsupported."""
    check_arguments(slot, LEVELS[0])
    try:
        directory = os.open(sys / "bus/pci/devices" / slot, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise LevelError("NoDevice", f"there is no device in slot {slot}") from None
    try:
        gpu = kind(slot, directory)
        if not (gpu._text("class") or "").startswith(DISPLAY_CLASS):
            raise LevelError("Unsupported", f"{slot} is not a GPU")
        if _driver(directory) != DRIVER:
            raise LevelError("Unsupported", f"{slot} is not driven by {DRIVER}")
        yield gpu
    finally:
        os.close(directory)


def _driver(directory: int) -> str | None:
    try:
        return os.path.basename(os.readlink("driver", dir_fd=directory))
    except OSError:
        return None
