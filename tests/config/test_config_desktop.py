"""[desktop]: what accelerd hears from the desktop and tells it."""

from __future__ import annotations

import pytest
from config_home import Home

from accelerd.config import Config, diff
from accelerd.config.machine_settings import DesktopSettings
from accelerd.config.show import show


def test_every_key_in_the_units_of_the_program(home: Home) -> None:
    text = '[desktop]\ndelay_sleep = false\non_battery = "ignore"\nbattery_idle_timeout = "5m"\nnotify = false\n'
    assert home.load(text).desktop == DesktopSettings(False, "ignore", 300.0, False)


def test_nothing_written_is_the_built_in(home: Home) -> None:
    built_in = home.load("").desktop
    assert built_in == DesktopSettings()
    assert (built_in.delay_sleep, built_in.on_battery, built_in.notify) == (True, "save", True)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('delay_sleep = "yes"', "desktop.delay_sleep: expected true or false"),
        ('on_battery = "stop"', 'expected one of "save", "ignore"'),
        ('battery_idle_timeout = "never"', "desktop.battery_idle_timeout: expected a duration"),
        ("battery_idle_timeout = 0", "desktop.battery_idle_timeout: expected a duration"),
        ("notify = 1", "desktop.notify: expected true or false"),
        ("notifications = true", "desktop.notifications: unknown key"),
    ],
)
def test_mistakes(home: Home, line: str, complaint: str) -> None:
    [error] = home.errors(f"[desktop]\n{line}\n")
    assert complaint in error


def test_it_is_shown_and_loads_again(home: Home) -> None:
    config = home.load('[desktop]\non_battery = "ignore"\n')
    text = show(config)
    assert 'on_battery = "ignore"  # desktop (accelerd.toml:2)' in text
    assert 'battery_idle_timeout = "1m"  # built-in' in text
    assert home.load(text).desktop == config.desktop


def test_a_reload_names_what_changed(home: Home) -> None:
    new = home.load('[desktop]\nnotify = false\non_battery = "ignore"\n')
    assert diff(Config(), new).settings == ("desktop.on_battery", "desktop.notify")
