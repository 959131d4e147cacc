"""Clients of Python, each through accelerd and directly. tests/clients/run has those of npm and whole programs, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.__main__ import SDKS
from tests.clients.compare import Result, differences

RUN = Path(__file__).parent / "run"


@pytest.mark.slow
@pytest.mark.timeout(600)  # the first one installs the packages
@pytest.mark.parametrize("client", SDKS)
def test_a_client_gets_through_accelerd_what_it_gets_from_llama_server(llama_server: str, client: str) -> None:
    env = {**os.environ, "ACCELERD_TEST_PYTHON": sys.executable, "ACCELERD_TEST_LLAMA_SERVER": llama_server}
    done = subprocess.run([RUN, "--only", client], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    count, results = done.stdout.splitlines()[-1].split(" differences in ")
    assert (int(count), int(results.split()[0]) > 6 * 6) == (0, True), done.stdout


def result(check: str, target: str, ok: bool = True, seen: object = "x") -> Result:
    return Result("sdk", check, target, ok, seen, "" if ok else "it failed")


def test_what_differs_is_counted_and_what_neither_can_is_not() -> None:
    results = [
        result("same", "direct"), result("same", "through"),
        result("worse", "direct"), result("worse", "through", ok=False),
        result("other", "direct", seen={"a": [1, {"b": 2}]}), result("other", "through", seen={"a": [1, {"b": 3}]}),
        result("neither", "direct", ok=False), result("neither", "through", ok=False),
        result("gained", "direct", ok=False), result("gained", "through"),
        result("lost", "direct"),
    ]  # fmt: skip
    found = differences(results, [("direct", "through")])
    assert [(one.check, one.direct, one.through) for one in found] == [
        ("worse", "x", "it failed"),
        ("other", "a[1].b = 2", "a[1].b = 3"),
        ("lost", "x", "the client did not come to it"),
    ]
