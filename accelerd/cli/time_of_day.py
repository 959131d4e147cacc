"""Times of day such as "22:30", and seconds until then. The only place where accelctl reads the wall clock.

Local time, correct across changes to and from daylight saving time.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

from accelerd.cli.failure import usage

TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)\Z", re.ASCII)


def seconds_until(text: str, now: datetime | None = None) -> float:
    """Until it is "22:30" next. Failure for what is no time of day."""
    match = TIME.match(text.strip())
    if match is None:
        raise usage(f"{text!r} is not a time of day such as 22:30")
    now = now or datetime.now()
    then = now.replace(hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0)
    if then <= now:
        then += timedelta(days=1)
    return then.timestamp() - now.timestamp()


def time_in(seconds: float, now: datetime | None = None) -> str:
    """What time it is then: "21:40", with the day where it is not today."""
    now = now or datetime.now()
    then = datetime.fromtimestamp(now.timestamp() + seconds)
    return f"{then:%H:%M}" if then.date() == now.date() else f"{then:%H:%M} on {then:%Y-%m-%d}"


def seconds_since(at: float, now: datetime | None = None) -> float:
    """Seconds since `at`, a Unix time; 0 where it is in the future because the clock was set back."""
    return max((now or datetime.now()).timestamp() - at, 0.0)


def moment(now: datetime | None = None) -> str:
    """Local time with its distance from UTC, as ISO 8601 has it, to the millisecond."""
    return (now or datetime.now()).astimezone().isoformat(timespec="milliseconds")


def yielded(report: dict[str, Any]) -> str:
    """What is yielded, why, and until when."""
    until = f" until {time_in(report['remaining'])}" if report.get("remaining") is not None else ""
    return f"{report['what']} is yielded{until} ({report['why']}); to end this: accelctl resume"
