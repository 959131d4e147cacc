"""Mistakes in configuration files as lines: file, line, key, what was expected; all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerd.cli.output import Output
from accelerd.cli.text import printable


def print_problems(out: Output, problems: Sequence[dict[str, Any]]) -> None:
    """One line each, in the form that editors jump to: file:line: key: message."""
    for problem in problems:
        file, line = problem.get("file"), problem.get("line")
        where = f"{file}:{line}" if file and line else str(file or "configuration")
        warning = problem.get("severity") == "warning"
        word = out.style("warning", "yellow") if warning else out.style("error", "red")
        key = f"{problem['key']}: " if problem.get("key") else ""
        out.line(f"{printable(where)}: {word}: {printable(key + str(problem.get('message')))}")
