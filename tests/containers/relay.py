"""A second pytest inside the world of a ContainerManager, whose results become those of the tests out here.

The homes look at /proc, at their user's sockets and at podman's store: they are tested as the user whose all that is,
in one mount namespace with it, and not as root from outside.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.system.containers import ContainerManager
from tests.system.systemd_user import REPO

INSIDE = "ACCELERD_TEST_INSIDE"  # the descriptor for results; set in the second pytest


class Second:
    """Runs the tests `wanted` (node ids) in order; `result` waits for one."""

    def __init__(self, manager: ContainerManager, wanted: list[str]) -> None:
        self._manager = manager
        self._wanted = wanted
        self._results: dict[str, str] = {}

    def __enter__(self) -> Second:
        reading, writing = os.pipe()
        base = self._manager.home / "pytest"
        argv = [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly",  # in this order
            f"--rootdir={REPO}", f"--confcutdir={REPO}", "-c", str(REPO / "pyproject.toml"), f"--basetemp={base}",
            *(str(REPO / nodeid) for nodeid in self._wanted),
        ]  # fmt: skip
        self._log = (self._manager.base / "second.log").open("w+")
        self._process = self._manager.popen(
            argv, env={INSIDE: str(writing)}, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT,
            pass_fds=(writing,),
        )  # fmt: skip
        os.close(writing)
        self._pipe = os.fdopen(reading)
        return self

    def result(self, nodeid: str) -> str:
        """What went wrong with a test; empty: nothing."""
        while nodeid not in self._results:
            line = self._pipe.readline()
            if not line:
                self._process.wait(30)
                self._log.seek(0)
                return f"the second pytest ended with {self._process.returncode}:\n{self._log.read()[-6000:]}"
            report = json.loads(line)
            self._results[report["nodeid"]] = report["trouble"]
            if len(self._results) == len(self._wanted):
                self._process.wait(60)  # or it would be a zombie among the children of the tests that follow
        return self._results[nodeid]

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait(30)
        self._log.close()


class Reporter:
    """In the second pytest: writes one line for every test that is over."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._trouble: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self._trouble.append(f"{report.when}: {report.longreprtext}\n{report.capstdout}{report.capstderr}")
        if report.when == "teardown":
            self._write({"nodeid": report.nodeid, "trouble": "\n".join(self._trouble)})
            self._trouble = []

    def _write(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode() + b"\n"
        while data:
            data = data[os.write(self._fd, data) :]
