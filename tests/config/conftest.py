"""Fixtures of the configuration's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from config_home import Home

from accelerd.config import Config


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def model(home: Home) -> Callable[[str], Config]:
    """Loads a configuration with one model "m" that has these further lines."""
    return lambda lines: home.load(f'[models.m]\npath = "/m.gguf"\n{lines}\n')
