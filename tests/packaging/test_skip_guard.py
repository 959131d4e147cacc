"""tests/skip_guard.py: what is left out is a failure unless it is listed with a reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.skip_guard import read_allowed

GUARD = Path(__file__).parents[1] / "skip_guard.py"
SUITE = """
import pytest

@pytest.fixture
def device():
    pytest.skip("no device")

def test_runs(): assert True
def test_in_body(): pytest.skip("in the body")
def test_in_fixture(device): assert True
@pytest.mark.skip(reason="by mark")
def test_by_mark(): assert True
@pytest.mark.xfail(reason="known")
def test_expected(): assert False
"""


def run(root: Path, allowed: str, module: str = SUITE) -> tuple[int, str]:
    tests = root / "tests"
    tests.mkdir()
    (tests / "__init__.py").touch()  # else the checkout's own tests package, installed as editable, goes first
    (tests / "skip_guard.py").write_text(GUARD.read_text())
    (tests / "allowed_skips.txt").write_text(allowed)
    (tests / "test_it.py").write_text(module)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.skip_guard",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        "-q",
        "tests",
    ]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout.splitlines()[-1] if done.stdout else done.stderr


def test_every_way_of_leaving_out_a_test_fails(tmp_path: Path) -> None:
    status, summary = run(tmp_path, "")
    assert status == 1
    assert summary.startswith("2 failed, 1 passed, 2 errors")  # a skip before the body is an error of the set-up


def test_listed_ones_are_skipped(tmp_path: Path) -> None:
    names = ("in_body", "in_fixture", "by_mark", "expected")
    status, summary = run(tmp_path, "".join(f"tests/test_it.py::test_{n}  # needs a device\n" for n in names))
    assert status == 0
    assert summary.startswith("1 passed, 3 skipped, 1 xfailed")


def test_a_skipped_module_stops_the_run(tmp_path: Path) -> None:
    status, summary = run(tmp_path, "", 'import pytest\npytest.skip("all of it", allow_module_level=True)\n')
    assert status == 2
    assert summary.startswith("1 error")


def test_an_entry_needs_a_reason() -> None:
    assert read_allowed("# comment\n\na.py::test_x[a # b]  # why\n") == {"a.py::test_x[a # b]": "why"}
    with pytest.raises(pytest.UsageError, match="line 1"):
        read_allowed("a.py::test_x\n")
