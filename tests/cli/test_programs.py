"""Why nobody answers on the usual socket: what accelctl says from the states of accelerd's units."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from accelerd.cli.failure import ExitStatus, Failure
from accelerd.cli.programs import ProgramResult, explain_unreachable
from accelerd.cli.time_of_day import time_in

from .conftest import Ctl


class Systemd:
    """systemctl, with what it says of the socket unit and of the service."""

    def __init__(self, socket: str, service: str) -> None:
        self.units = {"socket": socket, "service": service}

    def run(self, argv: Sequence[str], timeout: float = 10.0) -> ProgramResult:
        load, active = self.units[argv[-1].rpartition(".")[2]].split()
        return ProgramResult(0, f"LoadState={load}\nUnitFileState=\nActiveState={active}\n", "")


@pytest.mark.parametrize(
    ("socket", "service", "message", "hint"),
    [
        ("masked inactive", "loaded inactive", "accelerd.socket masked", "systemctl --user unmask accelerd.socket &&"),
        ("loaded failed", "masked inactive", "accelerd.service masked", "unmask accelerd.service"),
        ("not-found inactive", "not-found inactive", "units are not installed", "accelctl doctor"),
        (
            "loaded active",
            "loaded failed",
            "has failed to start",
            "reset-failed accelerd.service accelerd.socket && systemctl --user restart",
        ),
        ("loaded inactive", "loaded inactive", "nothing listens", "systemctl --user start accelerd.socket"),
    ],
)
def test_why_nobody_answers(socket: str, service: str, message: str, hint: str) -> None:
    failure = Failure("nothing listens", exit=ExitStatus.UNREACHABLE, code="not_running", hint="start it")
    explain_unreachable(failure, Systemd(socket, service))
    assert message in failure.message
    assert hint in failure.hint


def test_the_service_itself_may_have_said_why() -> None:
    class Said:
        def run(self, argv: Sequence[str], timeout: float = 10.0) -> ProgramResult:
            text = (
                "LoadState=loaded\nUnitFileState=\nActiveState=failed\nStatusText=the port is taken\nStatusErrno={}\n"
            )
            return ProgramResult(0, text.format(self.number), "")

        def __init__(self, number: int) -> None:
            self.number = number

    for number, message in (
        (125, "accelerd has failed to start: the port is taken"),
        (0, "accelerd has failed to start"),
    ):
        failure = Failure("nothing listens", code="not_running", hint="start it")
        explain_unreachable(failure, Said(number))
        assert failure.message == message


def test_the_cause_is_that_of_the_last_start_and_has_its_time() -> None:
    """It may be gone since: systemd keeps the words of the last start, and no later one is tried."""

    class Said:
        def run(self, argv: Sequence[str], timeout: float = 10.0) -> ProgramResult:
            at = f"StateChangeTimestampMonotonic={int((time.monotonic() - 50) * 1e6)}"
            return ProgramResult(0, f"ActiveState=failed\nStatusText=it was so\nStatusErrno=125\n{at}\n", "")

    failure = Failure("nothing listens", code="not_running", hint="start it")
    times = [time_in(-50)]
    explain_unreachable(failure, Said())
    times.append(time_in(-50))  # the minute may have ended meanwhile
    assert failure.message in {f"accelerd has failed to start, last at {at}: it was so" for at in times}
    assert failure.hint.startswith("when that is mended: systemctl --user reset-failed")


def test_of_a_configuration_the_mistakes_of_now_are_told_not_those_of_then() -> None:
    """systemd keeps the words of the last start that it allowed; the files may have changed since."""

    class Said:
        def run(self, argv: Sequence[str], timeout: float = 10.0) -> ProgramResult:
            assert "ExecMainStatus" in argv[-2]
            text = "ActiveState=failed\nStatusText=keys contains no key\nStatusErrno=125\nExecMainStatus=78\n"
            return ProgramResult(0, text, "")

    failure = Failure("nothing listens", code="not_running", hint="start it")
    explain_unreachable(failure, Said())
    assert failure.message == "accelerd has failed to start: the configuration was not valid then"


def test_without_systemd_the_plain_message_stays() -> None:
    class Nothing:
        def run(self, argv: Sequence[str], timeout: float = 10.0) -> ProgramResult:
            return ProgramResult(127, "", "no such program")

    failure = Failure("nothing listens", code="not_running", hint="start it")
    explain_unreachable(failure, Nothing())
    assert (failure.message, failure.hint) == ("nothing listens", "start it")


def test_accelctl_asks_systemd_only_for_the_usual_socket(ctl: Ctl, tmp_path: Path) -> None:
    fake = tmp_path / "bin/systemctl"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nprintf 'LoadState=masked\\nUnitFileState=masked\\nActiveState=inactive\\n'\n")
    fake.chmod(0o755)
    named = ctl("status", PATH=f"{fake.parent}:/usr/bin:/bin")
    del ctl.env["ACCELERD_SOCKET"]
    usual = ctl("status", PATH=f"{fake.parent}:/usr/bin:/bin")
    assert (named.status, usual.status) == (3, 3)
    assert "masked" not in named.err
    assert "systemctl --user unmask accelerd.socket accelerd.service" in usual.err


def test_a_mistake_in_the_configuration_is_named_where_nothing_runs(ctl: Ctl) -> None:
    del ctl.env["ACCELERD_SOCKET"]
    ctl.configure("[models.a]\npath = 5\n")
    done = ctl("status")
    assert "its configuration has mistakes: accelerd.toml:2: models.a.path: expected the path of a file" in done.err
    assert "accelctl config check" in done.err
    ctl.configure("[models.a]\npath = 5\ncontxt = 1\nbatch = 0\n")
    assert re.search(r"mistakes: accelerd\.toml:2: .* \(and 2 more\)", ctl("status").err)
    ctl.configure("")
    assert "mistakes" not in ctl("status").err
