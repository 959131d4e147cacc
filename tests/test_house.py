"""The house's own rules, read from the source: which room may know which, who reads the wall clock, sizes of files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from accelerd import __version__

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "accelerd"
FILES = sorted(PACKAGE.rglob("*.py"))

# room → rooms it must never import (prefixes of module names below accelerd)
FORBIDDEN = {
    "bus": ("gateway", "supervise", "engines", "cli", "daemon", "app"),
    "scheduler": ("gateway", "bus", "devices", "supervise", "system", "cli", "daemon", "app"),
    "supervise": ("gateway", "scheduler", "bus", "cli", "daemon", "app"),
    "engines": ("gateway", "scheduler", "supervise", "system", "cli", "daemon", "app"),
    "config": ("gateway", "scheduler", "supervise", "engines", "system", "cli", "daemon", "app"),
    "devices": ("gateway", "scheduler", "supervise", "engines", "cli", "daemon", "app"),
    "system": ("gateway", "scheduler", "supervise", "engines", "config", "cli", "daemon", "app"),
    "gateway": ("bus", "supervise", "config.load", "cli", "daemon", "app", "engines.llama_server"),
    "cli": ("gateway", "scheduler", "supervise", "daemon", "app"),
    "helper": (
        "gateway",
        "scheduler",
        "supervise",
        "engines",
        "config",
        "system",
        "devices",
        "cli",
        "daemon",
        "app",
        "errors",
        "ports",
        "performance",
    ),  # it runs as root: accelerd.base.names and nothing else
    "tuning": ("gateway", "scheduler", "supervise", "bus", "system", "cli", "daemon", "app", "engines.llama_server"),
    "memory": ("gateway", "scheduler", "supervise", "bus", "system", "cli", "daemon", "app", "engines"),
    "routing": ("gateway", "supervise", "bus", "system", "devices", "cli", "daemon", "app"),
    "names": ("",),
    "errors": ("",),
}


def imports(file: Path) -> Iterator[str]:
    """Modules of accelerd that a file imports, without the package's own name."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("accelerd."):
                yield name.removeprefix("accelerd.")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_no_room_knows_what_it_must_not(file: Path) -> None:
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports(file):
        for forbidden in FORBIDDEN.get(room, ()):
            assert forbidden, f"{room} must import nothing of accelerd, not {module}"
            assert not f"{module}.".startswith(f"{forbidden}."), f"{room} must not import accelerd.{module}"


def test_only_clocks_for_people_read_the_wall_clock() -> None:
    """Timers run on monotonic time: a wall clock that jumps a year moves nothing."""
    allowed = {
        "cli/commands/toolbox.py",  # how old a toolbox is
        "cli/daytime.py",  # "until 22:30"
        "gateway/gateway.py",  # `created` of OpenAI's model objects
        "system/terminal.py",  # the time in front of a log line
    }
    wall = re.compile(r"\btime\.(time|time_ns|localtime|gmtime|strftime)\(|datetime\.(now|utcnow|today)\(")
    found = {str(f.relative_to(PACKAGE)) for f in FILES if wall.search(f.read_text())}
    assert found <= allowed


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_every_module_says_what_it_owns_and_stays_small(file: Path) -> None:
    text = file.read_text()
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), "a module docstring says what it owns"
    assert text.count("\n") <= 450


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == __version__
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()
