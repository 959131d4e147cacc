"""The house's own rules, read from the source: which room may know which, who reads the wall clock, sizes of files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from accelerd import __version__

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "accelerd"
FILES = sorted(PACKAGE.rglob("*.py"))

# A room may import the rooms before it, never one after it.
ROOMS = (
    "__init__", "base", "config", "system", "helper", "devices", "memory", "estimate", "downloads", "engines",
    "instances", "tuning", "supervise", "scheduler", "routing", "accounts", "gateway", "policy", "control", "bus",
    "web", "cli", "app", "daemon", "__main__", "migrate", "paper",
)  # fmt: skip

# What stands before a room and is none of its business all the same.
FORBIDDEN = {
    "scheduler": {"system", "devices", "supervise", "tuning", "estimate", "downloads"},  # pure: events and a clock
    "routing": {"system", "devices", "supervise", "tuning", "estimate", "downloads"},
    "supervise": {"tuning", "estimate"},
    "system": {"config"},
    "helper": {"config", "system"},  # it runs as root: accelerd.base.names and nothing else
    "devices": {"memory", "estimate"},
    "downloads": {"system", "helper", "devices", "config"},
    "gateway": {"supervise", "tuning", "estimate", "devices"},
    "bus": {"gateway", "supervise", "engines"},
    "cli": {"gateway", "scheduler", "supervise", "policy", "bus"},
}
HELPER = {"base.names"}  # all that the root helper may import from other rooms


def module_of(file: Path) -> str:
    """ "gateway.relay"; a package's own name for its __init__."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = sorted(module_of(file) for file in FILES)


def imports(file: Path) -> Iterator[str]:
    """The modules of accelerd that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "accelerd":
                owner = rest.rpartition(".")[0] or "__init__"
                yield rest if rest in MODULES else owner


IMPORTS = {module_of(file): set(imports(file)) - {module_of(file)} for file in FILES}


def room_of(module: str) -> str:
    return module.split(".")[0] or "__init__"


def test_the_top_level_holds_only_the_daemon() -> None:
    loose = {path.name for path in PACKAGE.glob("*.py")}
    assert loose == {"__init__.py", "__main__.py", "app.py", "daemon.py", "instances.py"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_forward(module: str) -> None:
    room = room_of(module)
    for found in IMPORTS[module]:
        other = room_of(found)
        assert ROOMS.index(other) <= ROOMS.index(room), f"{module} imports {found}: backwards"
        assert other not in FORBIDDEN.get(room, ()), f"{room} must not import {found}"
        if room == "helper":
            assert other == "helper" or found in HELPER, f"the root helper must not import {found}"


def test_files_import_each_other_in_no_circle() -> None:
    TopologicalSorter(IMPORTS).prepare()  # CycleError names the circle


def test_only_clocks_for_people_read_the_wall_clock() -> None:
    """Timers run on monotonic time: a wall clock that jumps a year moves nothing."""
    allowed = {
        "cli/commands/toolbox.py",  # how old a toolbox is
        "cli/time_of_day.py",  # "until 22:30"
        "gateway/corrections.py",  # `created_at` of Ollama's lines
        "gateway/dialects/translation.py",  # `created` of an answer
        "gateway/gateway.py",  # `created` of OpenAI's model objects
        "gateway/response_framing.py",  # a Retry-After that is a date
        "gateway/whole_responses.py",  # `created_at` of a response
        "gateway/responses.py",  # the header Date, dates in lists
        "system/logs.py",  # the time in front of a log line
    }
    wall = re.compile(r"\btime\.(time|time_ns|localtime|gmtime|strftime)\(|datetime\.(now|utcnow|today)\(")
    found = {str(f.relative_to(PACKAGE)) for f in FILES if wall.search(f.read_text())}
    assert found <= allowed


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_every_module_says_what_it_owns(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text())), "a module docstring says what it owns"


def test_files_stay_small() -> None:
    """A file is one thing and not split by its length alone; still few are long."""
    long = {str(f.relative_to(PACKAGE)): lines for f in FILES if (lines := f.read_text().count("\n")) > 450}
    assert len(long) <= 3, long
    assert max(long.values(), default=0) <= 600, long


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == __version__
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()
