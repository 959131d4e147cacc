"""[memory]: what is left to other programs, and when models make room for them."""

from __future__ import annotations

import pytest
from config_home import Home

from accelerd.config import Config, diff
from accelerd.config.machine_settings import MemorySettings
from accelerd.config.show import show


def test_every_key_in_the_units_of_the_program(home: Home) -> None:
    text = '[memory]\nreserve = "8GB"\ngpu_reserve = 0\nyield_on = ["sleep", "gamemode"]\nsoft_grace = "500ms"\n'
    assert home.load(text).memory == MemorySettings(8_000_000_000, 0, ("sleep", "gamemode"), 0.5)


def test_nothing_written_is_the_built_in(home: Home) -> None:
    built_in = home.load("").memory
    assert built_in == MemorySettings()
    assert (built_in.reserve, built_in.gpu_reserve) == (None, 256 << 20)
    assert (built_in.yield_on, built_in.soft_grace) == (("gamemode",), 1.0)
    assert home.load('[memory]\nreserve = "auto"\nyield_on = []\n').memory == MemorySettings(yield_on=())


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
def test_mistakes(home: Home, line: str, complaint: str) -> None:
    [error] = home.errors(f"[memory]\n{line}\n")
    assert complaint in error


def test_it_is_shown_and_loads_again(home: Home) -> None:
    config = home.load('[memory]\nreserve = "8GB"\nyield_on = ["sleep"]\n')
    text = show(config)
    assert 'reserve = "7812500KiB"' in text
    assert 'gpu_reserve = "256MiB"' in text
    assert home.load(text).memory == config.memory


def test_a_reload_names_what_changed(home: Home) -> None:
    def changed(text: str) -> tuple[str, ...]:
        return diff(Config(), home.load(text)).settings

    assert changed("[memory]\nsoft_grace = 0\nreserve = 1\n") == ("memory.reserve", "memory.soft_grace")


@pytest.mark.parametrize("size", ['"1KiB"', "1048575"])
def test_a_prompt_cache_that_is_too_small_is_told_the_least_size(home: Home, size: str) -> None:
    [error] = home.errors(f'[models.one]\npath = "/one.gguf"\nprompt_cache = {size}\n')
    assert "expected a size" in error
    assert 'at least 1 MiB, or "off", or "auto"' in error
    spec = home.load('[models.one]\npath = "/one.gguf"\nprompt_cache = "1MiB"\n').models["one"]
    assert spec.prompt_cache == 1 << 20
