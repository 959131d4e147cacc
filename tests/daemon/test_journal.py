"""What an admin sees of a model with systemctl and journalctl, over a real journald and a real systemd --user."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.kit import QUICK
from tests.daemon.service import SERVICE, Service, installed
from tests.harness import eventually
from tests.system.systemd_user import UserManager, journald_manager

__all__ = ["journald_manager"]

UNIT = "--user-unit=accelerd-qwen.service"
TO_JOURNAL = "[Service]\nStandardOutput=journal\nStandardError=journal\n"


@pytest.fixture
def service(journald_manager: UserManager) -> Iterator[Service]:
    yield from installed(journald_manager)


def install(service: Service, toml: str, level: str = "debug") -> None:
    """With its output to the journal, as it is shipped, and not to the file that other tests read."""
    service.install(toml)
    folder = service.manager.runtime_dir / "systemd/user" / f"{SERVICE}.d"
    service.manager.write(folder / "z.conf", f"{TO_JOURNAL}Environment=ACCELERD_LOG_LEVEL={level}\n")
    service.manager.systemctl("daemon-reload")


def journal(service: Service, wanted: str) -> list[dict[str, str]]:
    """The entries that this user finds since this test began."""
    began = (service.manager.base / "cgroup").stat().st_mtime
    argv = ["journalctl", wanted, "--output=json", "--no-pager", f"--since=@{began:.6f}"]
    lines = service.manager.run(argv, check=False).stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_a_model_s_output_and_story_stand_in_the_journal_of_its_unit(service: Service) -> None:
    install(service, QUICK + service.site.model("qwen"))
    service.start()
    pid = service.load("qwen")["qwen"]

    def said() -> bool:
        return any("listening on" in entry["MESSAGE"] for entry in journal(service, UNIT))

    eventually(said, "what the model printed is in the journal of its unit")
    entries = journal(service, UNIT)
    assert {entry["ACCELERD_MODEL"] for entry in entries if "ACCELERD_MODEL" in entry} == {"qwen"}
    (line,) = [entry for entry in entries if "listening on" in entry["MESSAGE"]]
    assert line["SYSLOG_IDENTIFIER"] == "accelerd"
    story = [entry["MESSAGE"] for entry in journal(service, "ACCELERD_MODEL=qwen")]
    assert any(message.startswith("qwen: starting → ready") for message in story)
    shown = service.manager.systemctl("status", "accelerd-*").stdout
    assert "accelerd-qwen.service - model qwen" in shown
    assert f"Main PID: {pid} " in shown


def test_after_a_restart_the_next_daemon_goes_on_with_it(service: Service) -> None:
    install(service, QUICK + service.site.model("qwen"))
    first = service.start()
    pid = service.load("qwen")["qwen"]
    service.manager.systemctl("restart", SERVICE)
    second = service.back(first)
    assert service.pids("qwen") == {"qwen": pid}
    service.manager.systemctl("stop", *service.units)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the model has ended")

    def last_words() -> set[str]:
        found = journal(service, UNIT)
        return {entry["_PID"] for entry in found if "cleaning up before exit" in entry["MESSAGE"]}

    assert eventually(last_words, "what it printed at its end is in the journal of its unit") == {str(second)}


def test_an_engine_that_works_is_silent_in_the_journal_and_one_that_fails_is_not(service: Service) -> None:
    """What it says at its own levels of warning and error, and its last words when nobody wanted it to end."""
    install(service, QUICK + service.site.model("qwen") + service.site.model("broken", "exit:3"), level="info")
    service.start()
    service.load("qwen")
    assert service.chat("qwen").status == 200
    assert service.chat("broken").status == 503

    def said() -> bool:
        found = [entry["MESSAGE"] for entry in journal(service, "ACCELERD_MODEL=broken")]
        return "E main: exiting due to mode exit:3" in found and "I main: fake server" in found

    eventually(said, "the last words of the one that failed are in the journal")
    chatter = [entry["MESSAGE"] for entry in journal(service, "ACCELERD_MODEL=qwen") if "main:" in entry["MESSAGE"]]
    assert chatter == []
    assert "I main: model loaded" in service.accelctl("logs", "qwen")
