"""[memory]: what is left to other programs, and when models make room for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from config_home import Home

from accelerd.config import Config, diff
from accelerd.config.model import MemorySettings
from accelerd.config.show import show

GIB = 1 << 30


def test_every_key_in_the_units_of_the_program(home: Home) -> None:
    text = '[memory]\nreserve = "8GB"\ngpu_reserve = 0\nyield_on = ["sleep", "gamemode"]\nsoft_grace = "500ms"\n'
    assert home.load(text).memory == MemorySettings(8_000_000_000, 0, ("sleep", "gamemode"), 0.5)


def test_nothing_written_is_the_built_in(home: Home) -> None:
    built_in = home.load("").memory
    assert built_in == MemorySettings()
    assert (built_in.yield_on, built_in.soft_grace) == (("gamemode",), 3.0)
    assert home.load('[memory]\nreserve = "auto"\nyield_on = []\n').memory == MemorySettings(yield_on=())


@pytest.mark.parametrize(
    ("written", "capacity", "ram", "device"),
    [
        (None, 128 * GIB, 8 * GIB, GIB),
        (None, 32 * GIB, 32 * GIB // 10, GIB),
        (None, 8 * GIB, GIB, 8 * GIB // 20),
        (None, 4 * GIB, GIB, 256 << 20),
        (None, 512 << 20, 512 << 20, 256 << 20),
        (0, 8 * GIB, 0, 0),
        (3 * GIB, 64 * GIB, 3 * GIB, 3 * GIB),
        (3 * GIB, GIB, GIB, GIB),
        (None, 0, 0, 0),
    ],
)
def test_how_much_stays_free(written: int | None, capacity: int, ram: int, device: int) -> None:
    settings = MemorySettings(reserve=written, gpu_reserve=written)
    assert (settings.ram_reserve(capacity), settings.device_reserve(capacity)) == (ram, device)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('reserve = "much"', "memory.reserve: expected a size"),
        ("gpu_reserve = -1", "memory.gpu_reserve: expected a size"),
        ('yield_on = "gamemode"', "memory.yield_on: expected an array"),
        ('yield_on = ["lock"]', 'expected one of "gamemode", "sleep"'),
        ('soft_grace = "never"', "memory.soft_grace: expected a duration"),
        ("reserves = 1", "memory.reserves: unknown key"),
    ],
)
def test_mistakes(problems: Callable[[str], str], line: str, complaint: str) -> None:
    assert complaint in problems(f"[memory]\n{line}\n")


def test_it_is_shown_and_loads_again(home: Home) -> None:
    config = home.load('[memory]\nreserve = "8GB"\nyield_on = ["sleep"]\n')
    text = show(config)
    assert 'reserve = "8000000000B"' in text
    assert 'gpu_reserve = "auto"' in text
    assert home.load(text).memory == config.memory


def test_a_reload_names_what_changed(home: Home) -> None:
    def changed(text: str) -> tuple[str, ...]:
        return diff(Config(), home.load(text)).settings

    assert changed("[memory]\nsoft_grace = 0\nreserve = 1\n") == ("memory.reserve", "memory.soft_grace")
