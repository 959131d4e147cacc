"""Which sockets are served: those of the configuration, whoever opened them and whoever else holds them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from accelerd.config.model import ServerSettings
from accelerd.gateway.listeners import Listeners
from accelerd.system.activation import Passed, address_of, covers, overlap
from accelerd.system.lock import StartError
from tests.ports import free_port

UNIT = "accelerd-http.socket"


class Systemd:
    """Holds copies of the sockets that it passes, and lets go of them if it is willing: at once or, if busy, later."""

    def __init__(self, *addresses: tuple[str, int], willing: bool = True, busy: bool = False) -> None:
        self.own = [socket.create_server(address) for address in addresses]
        self.passed = Passed([(UNIT, sock.dup()) for sock in self.own], [])
        self.willing, self.busy = willing, busy
        self.asked: list[str] = []

    async def release(self, unit: str) -> bool:
        self.asked.append(unit)
        if self.willing and not self.busy:
            self.close()
        return self.willing

    def store(self, address: tuple[str, int], sock: socket.socket) -> str:
        self.own.append(sock.dup())
        return f"listen-{address[1]}"

    def close(self) -> None:
        while self.own:
            self.own.pop().close()


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def listeners(systemd: Systemd, directory: Path, held: ExitStack) -> Listeners:
    held.callback(systemd.close)
    gateway: Any = None  # nothing is asked here
    made = Listeners(
        gateway, ServerSettings(), systemd.passed, directory / "run/a.sock", systemd.release, systemd.store
    )
    held.callback(lambda: [sock.close() for sock in (*(o.sock for a in made._tcp.values() for o in a), *made._unix)])
    return made


def connects(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


async def test_what_is_configured_and_passed_stays_as_it_is(tmp_path: Path, held: ExitStack) -> None:
    port = free_port()
    systemd = Systemd(("127.0.0.1", port))
    found = listeners(systemd, tmp_path, held)
    await found.listen([f"127.0.0.1:{port}"])
    assert (found.addresses, systemd.asked, connects(port)) == ([f"127.0.0.1:{port}"], [], True)
    await found.open()
    found.stop_accepting()
    assert found.addresses == [f"127.0.0.1:{port}"], "asked for until the end"


async def test_all_addresses_make_room_for_one_of_them(tmp_path: Path, held: ExitStack) -> None:
    port = free_port()
    systemd = Systemd(("0.0.0.0", port))
    found = listeners(systemd, tmp_path, held)
    await found.listen([f"127.0.0.1:{port}"])
    assert (found.addresses, systemd.asked) == ([f"127.0.0.1:{port}"], [UNIT])
    assert (connects(port), connects(port, "127.0.0.2")) == (True, False)


@pytest.mark.parametrize("willing", [True, False])
@pytest.mark.parametrize("own", ["127.0.0.1", "0.0.0.0"])
async def test_a_socket_that_systemd_keeps_or_closes_later_cannot_be_reached_all_the_same(
    tmp_path: Path, held: ExitStack, own: str, willing: bool
) -> None:
    port, other = free_port(), free_port()
    systemd = Systemd((own, port), willing=willing, busy=True)
    found = listeners(systemd, tmp_path, held)
    await found.listen([f"127.0.0.1:{other}"])
    assert (connects(port), connects(other)) == (False, True)
    await found.listen([f"127.0.0.1:{port}"])
    assert (found.addresses, connects(port), connects(other)) == ([f"127.0.0.1:{port}"], True, False)


async def test_an_address_in_use_changes_nothing(tmp_path: Path, held: ExitStack) -> None:
    port, new = free_port(), free_port()
    busy = held.enter_context(socket.create_server(("127.0.0.1", 0)))
    found = listeners(Systemd(("127.0.0.1", port)), tmp_path, held)
    with pytest.raises(StartError, match="uses the port"):
        await found.listen([f"127.0.0.1:{new}", f"127.0.0.1:{address_of(busy)[1]}"])
    assert (found.addresses, connects(port), connects(new)) == ([f"127.0.0.1:{port}"], True, False)


async def test_at_a_start_what_cannot_be_had_is_tried_again(tmp_path: Path, held: ExitStack) -> None:
    own, busy, absent = free_port(), held.enter_context(socket.create_server(("127.0.0.1", 0))), "240.0.0.1:4000"
    taken = f"127.0.0.1:{busy.getsockname()[1]}"
    found = listeners(Systemd(), tmp_path, held)
    await found.listen([taken, f"127.0.0.1:{own}", absent], starting=True)
    await found.open()
    held.callback(found.stop_accepting)
    assert found.addresses == [f"127.0.0.1:{own}"]
    assert [problem.split(": ")[0] for problem in found.problems] == [
        f"cannot listen on {taken}", f"cannot listen on {absent}",
    ]  # fmt: skip
    assert [(one.address, one.remote) for one in found.report() if one.problem] == [(taken, False), (absent, True)]
    assert not await found.try_again(), "nothing has changed"
    busy.close()
    assert await found.try_again()
    assert found.addresses == [taken, f"127.0.0.1:{own}"], "as they are configured"
    other = held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
    with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{other}"):
        await found.listen([f"127.0.0.1:{other}", absent])
    await found.listen([f"127.0.0.1:{own}", absent])
    assert (found.addresses, len(found.problems)) == ([f"127.0.0.1:{own}"], 1)
    await found.listen([f"127.0.0.1:{own}"])
    assert found.problems == []
    assert not await found.try_again()


async def test_who_gave_an_address_up_meanwhile_does_not_get_it(
    tmp_path: Path, held: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, busy = free_port(), held.enter_context(socket.create_server(("127.0.0.1", 0)))
    port = busy.getsockname()[1]
    found = listeners(Systemd(), tmp_path, held)
    await found.listen([f"127.0.0.1:{own}", f"127.0.0.1:{port}"], starting=True)
    busy.close()

    async def later(work: Any, *args: Any, **more: Any) -> Any:
        await found.listen([f"127.0.0.1:{own}"])  # a reload
        return work(*args, **more)

    monkeypatch.setattr("asyncio.to_thread", later)
    await found.try_again()
    held.callback(found.stop_accepting)
    assert found.addresses == [f"127.0.0.1:{own}"]
    socket.create_server(("127.0.0.1", port)).close()


async def test_a_passed_socket_that_is_not_the_control_socket_is_closed(
    tmp_path: Path, held: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(socket.AF_UNIX) as extra:
        extra.bind(str(tmp_path / "extra.sock"))
        extra.listen()
        systemd = Systemd()
        systemd.passed.unix.append(("own.socket", extra))
        listeners(systemd, tmp_path, held)
        assert extra.fileno() == -1
    assert f"{tmp_path}/extra.sock of own.socket is not served" in caplog.text


def test_addresses_in_the_way_of_each_other_and_connections_to_them() -> None:
    assert overlap(("0.0.0.0", 1), ("127.0.0.1", 1))
    assert not overlap(("0.0.0.0", 1), ("127.0.0.1", 2))
    assert not overlap(("127.0.0.1", 1), ("::1", 1))
    assert covers(("0.0.0.0", 1), ("192.0.2.7", 1))
    assert not covers(("127.0.0.1", 1), ("192.0.2.7", 1))
    assert not covers(("::", 1), ("192.0.2.7", 1))
    assert not covers(("127.0.0.1", 1), ("127.0.0.1", 2))
