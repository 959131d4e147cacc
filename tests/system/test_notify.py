"""sd_notify and the watchdog: what is said, to whom, and that nothing is said without a service manager."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from accelerd.system.sd_notify import Notifier, Watchdog


class Messages:
    """A transport that keeps what it is told, or fails."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.error: OSError | None = None

    def notify(self, state: str) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append(state)


class FixedClock:
    def monotonic(self) -> float:
        return 12.5


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield end


def test_the_life_of_a_service_over_a_real_socket(manager: socket.socket) -> None:
    notifier = Notifier.from_env()
    assert notifier.active
    assert notifier.ready("2 von 5 Modellen geladen, größtes: 通义")
    assert manager.recv(4096).decode() == "READY=1\nSTATUS=2 von 5 Modellen geladen, größtes: 通义"
    assert notifier.stopping()
    assert manager.recv(4096) == b"STOPPING=1"
    notifier.close()
    assert not notifier.active


def test_a_socket_is_handed_over_to_be_kept(manager: socket.socket) -> None:
    notifier = Notifier.from_env()
    with socket.create_server(("127.0.0.1", 0)) as kept:
        assert notifier.store("listen-127.0.0.1-1", kept.fileno())
        text, descriptors, _, _ = socket.recv_fds(manager, 4096, 4)
        assert text.decode().split("\n") == ["FDSTORE=1", "FDNAME=listen-127.0.0.1-1", "FDPOLL=0"]
        with socket.socket(fileno=descriptors[0]) as copy:
            assert copy.getsockname() == kept.getsockname()
    assert notifier.remove_stored("listen-127.0.0.1-1")
    assert manager.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=listen-127.0.0.1-1"
    notifier.close()


def test_descriptors_are_given_to_the_service_manager_by_name(manager: socket.socket) -> None:
    notifier = Notifier.from_env()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert notifier.store("queued-7", theirs.fileno(), 0, until_closed=True)
        message, descriptors, _, _ = socket.recv_fds(manager, 4096, 4)
        assert message == b"FDSTORE=1\nFDNAME=queued-7"
        assert len(descriptors) == 2
        with socket.socket(fileno=descriptors[0]) as kept:
            kept.sendall(b"hello")
        os.close(descriptors[1])
        assert ours.recv(5) == b"hello"
    assert notifier.remove_stored("queued-7")
    assert manager.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=queued-7"
    notifier.close()
    assert not Notifier(None).store("queued-7", 0)


def test_an_abstract_address_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"accelerd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind("\0" + name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        notifier = Notifier.from_env()
        notifier.alive()
        assert end.recv(100) == b"WATCHDOG=1"
        notifier.close()


def test_children_inherit_none_of_the_variables(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    notifier = Notifier.from_env()
    assert notifier.watchdog_interval == 30.0
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)
    notifier.close()


@pytest.mark.parametrize(("usec", "pid"), [("30000000", "1"), ("0", ""), ("soon", ""), ("", "")])
def test_a_watchdog_of_another_process_or_without_sense_is_off(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, usec: str, pid: str
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    notifier = Notifier.from_env()
    assert notifier.watchdog_interval is None
    notifier.close()


def test_without_a_service_manager_everything_is_accepted_and_nothing_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    notifier = Notifier.from_env()
    assert not notifier.active
    assert notifier.watchdog_interval is None
    said = [notifier.ready(), notifier.reloading(), notifier.stopping(), notifier.status("x"), notifier.alive()]
    assert said == [False] * 5


def test_a_socket_that_nobody_serves_is_the_same_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not Notifier.from_env().active
    assert "cannot reach the service manager" in caplog.text


def test_reloading_carries_the_monotonic_time() -> None:
    messages = Messages()
    notifier = Notifier(messages, clock=FixedClock())
    notifier.reloading()
    assert messages.sent == ["RELOADING=1\nMONOTONIC_USEC=12500000"]


def test_status_is_one_line_and_sent_only_when_it_changes() -> None:
    messages = Messages()
    notifier = Notifier(messages)
    notifier.status("one\nREADY=1")
    notifier.status("one READY=1")
    notifier.status("two")
    notifier.ready("two")
    assert messages.sent == ["STATUS=one READY=1", "STATUS=two", "READY=1"]


def test_a_wedged_service_manager_is_logged_once_and_the_status_said_again(caplog: pytest.LogCaptureFixture) -> None:
    messages = Messages()
    messages.error = TimeoutError("timed out")
    notifier = Notifier(messages)
    assert not notifier.status("one")
    assert not notifier.alive()
    assert len(caplog.records) == 1
    messages.error = None
    assert notifier.status("one")
    assert messages.sent == ["STATUS=one"]


def test_the_watchdog_is_fed_only_while_every_part_lives(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        messages = Messages()
        watchdog = Watchdog(Notifier(messages, watchdog_interval=0.02))
        healthy = {"gateway": True, "scheduler": True}
        for name in healthy:
            watchdog.register(name, lambda name=name: healthy[name])
        watchdog.start()
        await fed(messages, 3)
        healthy["scheduler"] = False
        before = len(messages.sent)
        await eventually(lambda: "not alive: scheduler" in caplog.text)
        await asyncio.sleep(0.06)  # several feedings that must not happen
        assert len(messages.sent) <= before + 1  # one may have been on its way
        assert caplog.text.count("not alive") == 1
        healthy["scheduler"] = True
        await fed(messages, len(messages.sent) + 2)
        watchdog.stop()
        assert set(messages.sent) == {"WATCHDOG=1"}

    asyncio.run(scenario())


def test_a_heart_beat_that_raises_counts_as_dead(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        messages = Messages()
        watchdog = Watchdog(Notifier(messages, watchdog_interval=60))
        watchdog.register("broken", lambda: bool(1 / 0))
        watchdog.start()
        assert messages.sent == []
        assert watchdog.dead() == ("broken",)
        watchdog.stop()

    asyncio.run(scenario())
    assert "cannot ask broken" in caplog.text


def test_without_a_watchdog_there_is_no_timer() -> None:
    async def scenario() -> None:
        watchdog = Watchdog(Notifier(Messages()))
        watchdog.start()
        assert not watchdog.running
        watchdog.stop()

    asyncio.run(scenario())


async def fed(messages: Messages, count: int) -> None:
    await eventually(lambda: len(messages.sent) >= count)


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("did not come true within 5 s")
