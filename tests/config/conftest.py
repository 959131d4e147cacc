"""A home with a configuration folder that only its user can write, whatever the umask of the test run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from accelerd import config
from accelerd.config import Config, Problem


class Home:
    """A user's home: write files, then load them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path / ".config" / "accelerd"
        self.folder.mkdir(parents=True, mode=0o700)
        self.main = self.folder / "accelerd.toml"
        self.dropins = self.folder / "accelerd.toml.d"

    def write(self, text: str | bytes, name: str = "accelerd.toml") -> Path:
        """A file of the configuration, mode 0600; `name` is relative to the folder."""
        target = self.folder / name
        target.parent.mkdir(mode=0o700, exist_ok=True)
        target.write_bytes(text if isinstance(text, bytes) else text.encode())
        target.chmod(0o600)
        return target

    def load(self, text: str | None = None) -> Config:
        if text is not None:
            self.write(text)
        return config.load(self.main, self.path)

    def check(self, text: str | bytes | None = None) -> tuple[Config | None, list[Problem]]:
        if text is not None:
            self.write(text)
        return config.check(self.main, self.path)

    def errors(self, text: str | bytes | None = None) -> list[str]:
        """The mistakes as people see them."""
        return [str(problem) for problem in self.check(text)[1] if problem.severity == "error"]

    def warnings(self, text: str | bytes | None = None) -> list[str]:
        return [str(problem) for problem in self.check(text)[1] if problem.severity == "warning"]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def model(home: Home) -> Callable[[str], Config]:
    """Loads a configuration with one model "m" that has these further lines."""
    return lambda lines: home.load(f'[models.m]\npath = "/m.gguf"\n{lines}\n')
