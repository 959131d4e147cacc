"""A pytest plugin: a test that is skipped (or expected to fail) is a failure, unless tests/allowed_skips.txt says why.

tests/run loads it, so that nothing is left out unnoticed; pytest alone, on a developer's machine, skips as usual.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

ALLOWED = Path(__file__).with_name("allowed_skips.txt")


class SkipGuard:
    """Turns the report of a skip that nobody allowed into the report of a failure."""

    def __init__(self, allowed: dict[str, str]) -> None:
        self._allowed = allowed

    def judge(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or report.nodeid in self._allowed:
            return
        reason = getattr(report, "wasxfail", None)
        if reason is not None:
            del report.wasxfail  # else it still counts as an expected failure
        elif isinstance(report.longrepr, tuple):
            reason = report.longrepr[2]
        report.outcome = "failed"
        report.longrepr = f"not run, and not listed in tests/{ALLOWED.name}: {reason or report.longrepr}"

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        self.judge(report)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        self.judge(report)
        return report


def read_allowed(text: str) -> dict[str, str]:
    """Node id → reason, from lines `NODE-ID  # REASON`; a node id without a reason is an error."""
    allowed = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        node, mark, reason = line.partition("  # ")
        if not mark or not reason.strip():
            raise pytest.UsageError(f"{ALLOWED.name}, line {number}: expected `NODE-ID  # REASON`")
        allowed[node.strip()] = reason.strip()
    return allowed


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SkipGuard(read_allowed(ALLOWED.read_text())), "skip-guard")
