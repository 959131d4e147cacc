"""The tables of accelerd.toml about the machine that models share with other programs: memory, clocks, desktop.

As in config/model.py, which has the others: each field that `key` declares is a key of the file.
"""

from __future__ import annotations

from dataclasses import dataclass

from accelerd.config import values as toml
from accelerd.config.keys import each_once, key, named, table


@dataclass(frozen=True)
class MemorySettings:
    """How much memory is kept free for other programs, and when models are unloaded for them."""

    reserve: int | None = key(
        toml.Reserve, None, 'Main memory to keep free of models; "auto" is a tenth of it, from 512 MiB to 8 GiB.'
    )
    gpu_reserve: int = key(toml.Size, 256 << 20, "Memory of each GPU to keep free of models.")
    yield_on: tuple[toml.YieldSignal, ...] = key(
        each_once(toml.YieldSignal),
        ("gamemode",),
        'Free the GPUs, as `accelctl yield` does, while a game uses GameMode ("gamemode") or before the system sleeps '
        '("sleep").',
    )
    soft_grace: float = key(
        toml.DurationOrZero,
        1.0,
        "How long other programs can use part of the reserve before idle models are unloaded. If they use half of it, "
        "models are unloaded at once.",
    )


@dataclass(frozen=True)
class DevicePerformanceSettings:
    """One GPU."""

    policy: toml.LevelPolicy | None = key(toml.LevelPolicy, None, "As in [performance], for this GPU.")


@dataclass(frozen=True)
class PerformanceSettings:
    """When an integrated GPU runs at its highest clocks."""

    policy: toml.LevelPolicy = key(
        toml.LevelPolicy,
        "busy",
        'When the performance level of an integrated GPU is set to "high": while a model on it is in use, always, or '
        "never. Dedicated cards are not changed.",
    )
    hold_time: float = key(toml.DurationOrZero, 10.0, "How long the level stays high after the last request.")
    # PCI slot → policy
    devices: dict[str, toml.LevelPolicy] = key(
        named(toml.Slot, table(DevicePerformanceSettings)), {}, "GPUs with their own policy, by PCI slot."
    )


@dataclass(frozen=True)
class DesktopSettings:
    """How accelerd reacts to sleep and battery power, and whether it shows notifications."""

    delay_sleep: bool = key(
        bool,
        True,
        "Delay system sleep, as long as logind allows, until requests have finished and the memory that "
        "memory.yield_on selects is free.",
    )
    on_battery: toml.BatteryPolicy = key(
        toml.BatteryPolicy,
        "save",
        'On battery or with the power profile "power-saver": "save" loads models only for requests and unloads them '
        'after battery_idle_timeout; "ignore" changes nothing.',
    )
    battery_idle_timeout: float = key(
        toml.Duration,
        60.0,
        "On battery, unload a model after this time without requests, unless its idle_timeout is shorter.",
    )
    notify: bool = key(
        bool,
        True,
        "Show desktop notifications about important events: a model has failed permanently, memory is not released, a "
        "device was removed.",
    )
