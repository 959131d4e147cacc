"""What clients saw, compared: whatever works against llama-server itself must do the same through accelerd."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST = 160  # characters of a value that is shown


@dataclass(frozen=True)
class Result:
    """Of one check against one target. `seen` has no values that differ by nature; `says`: of a failure."""

    suite: str
    check: str
    target: str
    ok: bool
    seen: Any
    says: str = ""


@dataclass(frozen=True)
class Difference:
    suite: str
    check: str
    target: str
    direct: str
    through: str


def short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def where(left: Any, right: Any, path: str = "") -> tuple[str, str]:
    """The first place where two values differ, told of both."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        for key in [*left, *(key for key in right if key not in left)]:
            if left.get(key) != right.get(key):
                return where(left.get(key, "(absent)"), right.get(key, "(absent)"), f"{path}.{key}")
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for number, (one, other) in enumerate(zip(left, right, strict=True)):
            if one != other:
                return where(one, other, f"{path}[{number}]")
    name = f"{path.lstrip('.')} = " if path else ""
    return name + short(left), name + short(right)


def difference(direct: Result, through: Result) -> Difference | None:
    """What a client has less, or otherwise, through accelerd. What fails directly may fail or work."""
    if not direct.ok or (through.ok and through.seen == direct.seen):
        return None
    left, right = where(direct.seen, through.seen) if through.ok else (short(direct.seen), through.says)
    return Difference(direct.suite, direct.check, through.target, left, right)


def differences(results: Iterable[Result], pairs: Iterable[tuple[str, str]]) -> list[Difference]:
    """`pairs`: names of the targets that are compared, llama-server's first. A missing result is a failure."""
    found = {(one.suite, one.check, one.target): one for one in results}
    told = []
    for direct, through in pairs:
        for (suite, check, target), one in found.items():
            if target == direct:
                nothing = Result(suite, check, through, False, None, "the client did not come to it")
                if (seen := difference(one, found.get((suite, check, through), nothing))) is not None:
                    told.append(seen)
    return told


def told(found: Iterable[Difference]) -> str:
    """What differs, once for all targets where it is the same."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for one in found:
        grouped.setdefault((f"{one.suite}.{one.check}", one.direct, one.through), []).append(one.target)
    return "\n\n".join(
        f"{name} ({'; '.join(targets)})\n    llama-server: {direct}\n    accelerd:     {through}"
        for (name, direct, through), targets in grouped.items()
    )


def table(results: list[Result], targets: list[str], found: list[Difference]) -> str:
    """How many checks of each suite passed at each target, and how many differ."""
    suites = list(dict.fromkeys(one.suite for one in results))
    rows = [["client", *targets, "worse or other"]]
    for suite in suites:
        row = [suite]
        for target in targets:
            mine = [one for one in results if (one.suite, one.target) == (suite, target)]
            row.append(f"{sum(one.ok for one in mine)}/{len(mine)}")
        rows.append([*row, str(sum(one.suite == suite for one in found))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
