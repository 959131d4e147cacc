"""Sockets: handed over by systemd, bound by ourselves, refused with a reason."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from accelerd.system.activation import bind_tcp, bind_unix, describe, parse_listen, sd_listen_fds
from accelerd.system.lock import StartError
from tests.ports import free_port

ADOPT = """
import json, os, sys
from accelerd.system.activation import describe, sd_listen_fds
from accelerd.system.lock import StartError
os.environ["LISTEN_PID"] = str(os.getpid())
try:
    given = sd_listen_fds()
except StartError as error:
    sys.exit(str(error))
print(json.dumps({
    "tcp": [[name, describe(sock), sock.get_inheritable(), sock.getblocking()] for name, sock in given.tcp],
    "unix": [[name, describe(sock), sock.get_inheritable(), sock.getblocking()] for name, sock in given.unix],
    "queued": [[sock.getblocking(), sock.get_inheritable(), data.decode()] for sock, data in given.queued],
    "stored": given.stored,
    "left": [name for name in os.environ if name.startswith("LISTEN_")],
}))
"""


def adopt(sockets: Sequence[socket.socket | int], names: str) -> subprocess.CompletedProcess[str]:
    """Run sd_listen_fds in a process that has `sockets` at descriptor 3 and following, as systemd starts it."""
    inherited = [fcntl.fcntl(sock, fcntl.F_DUPFD, 100) for sock in sockets]
    moves = " ".join(f"{3 + index}<&{number}" for index, number in enumerate(inherited))
    try:
        return subprocess.run(
            ["bash", "-c", f'exec "$0" "$@" {moves}', sys.executable, "-c", ADOPT],
            pass_fds=inherited, capture_output=True, text=True, check=False, timeout=30,
            env={**os.environ, "LISTEN_FDS": str(len(inherited)), "LISTEN_FDNAMES": names, "LISTEN_PIDFDID": "7"},
        )  # fmt: skip
    finally:
        for number in inherited:
            os.close(number)


def test_sockets_of_systemd_are_taken_with_their_names(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        four = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        six = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        control = stack.enter_context(bind_unix(tmp_path / "run/accelerd.sock"))
        done = adopt([four, six, control], "web:web:control")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {
            "tcp": [["web", describe(four), False, False], ["web", describe(six), False, False]],
            "unix": [["control", str(tmp_path / "run/accelerd.sock"), False, False]],
            "queued": [],
            "stored": [],
            "left": [],
        }


def memory_file(data: bytes) -> int:
    file = os.memfd_create("test")
    os.write(file, data)
    return file


def test_connections_that_systemd_kept_come_with_their_requests(tmp_path: Path) -> None:
    """In whatever order; one whose client has gone, of which only the request is left, is dropped."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        ends = [end for _ in range(2) for end in socket.socketpair()]
        files = [memory_file(data) for data in (b"request one", b"request two", b"of nobody")]
        for end in ends:
            stack.callback(end.close)
        for file in files:
            stack.callback(os.close, file)
        given = [listening, ends[0], files[0], files[1], ends[2], files[2]]
        done = adopt(given, "web:queued-0:queued-0:queued-1:queued-1:queued-2")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert [name for name, *_ in found["tcp"]] == ["web"]
        assert found["queued"] == [[False, False, "request one"], [False, False, "request two"]]
        assert found["stored"] == ["queued-0", "queued-1", "queued-2"]


def test_sockets_that_do_not_listen_for_streams_are_refused() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, socket.socket() as deaf:
        for sock in (datagrams, deaf):
            done = adopt([sock], "web")
            assert done.returncode == 1
            assert "cannot use descriptor 3 (web) from systemd: it is not a listening stream socket" in done.stderr
    with Path("/dev/null").open() as file:
        done = adopt([file], "web")  # type: ignore[list-item]
        assert "cannot use descriptor 3 (web) from systemd: Socket operation on non-socket" in done.stderr


def test_variables_for_another_process_are_dropped() -> None:
    env = {"LISTEN_PID": "1", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:c", "HOME": "/"}
    given = sd_listen_fds(env)
    assert (given.tcp, given.unix, env) == ([], [], {"HOME": "/"})


def test_a_broken_count_is_refused() -> None:
    with pytest.raises(StartError, match="LISTEN_FDS='many'"):
        sd_listen_fds({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"})


@pytest.fixture
def held() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def test_both_loopbacks_are_bound_and_connections_wait_for_the_first_accept(held: contextlib.ExitStack) -> None:
    port = free_port()
    bound = bind_tcp([("127.0.0.1", port), ("::1", port)])
    for sock in bound:
        held.enter_context(sock)
    assert [describe(sock) for sock in bound] == [f"127.0.0.1:{port}", f"[::1]:{port}"]
    for host in ("127.0.0.1", "::1"):
        held.enter_context(socket.create_connection((host, port), timeout=5))
    six = bound[1]
    assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    assert not six.getblocking()


@pytest.mark.parametrize("busy", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_a_port_busy_in_one_family_binds_nothing_and_names_the_holder(held: contextlib.ExitStack, busy: str) -> None:
    port = free_port()
    family = socket.AF_INET6 if ":" in busy else socket.AF_INET
    held.enter_context(socket.create_server((busy, port), family=family))
    comm = Path("/proc/self/comm").read_text().strip()
    text = rf"cannot listen on .*:{port}: {comm} \(pid {os.getpid()}\) uses the port; stop it, or change"
    with pytest.raises(StartError, match=text):
        bind_tcp([("127.0.0.1", port), ("::1", port)])
    free = "127.0.0.1" if ":" in busy else "::1"
    with pytest.raises(ConnectionRefusedError), socket.create_connection((free, port), timeout=5):
        pytest.fail("one family was left bound")


def test_a_holder_that_cannot_be_seen_is_still_a_clear_text(held: contextlib.ExitStack, tmp_path: Path) -> None:
    port = free_port()
    held.enter_context(socket.create_server(("127.0.0.1", port)))
    with pytest.raises(StartError, match=r"a program of another user uses the port"):
        bind_tcp([("127.0.0.1", port)], proc=tmp_path)


def test_a_port_held_by_systemd_tells_to_start_the_unit(held: contextlib.ExitStack, tmp_path: Path) -> None:
    port = free_port()
    server = held.enter_context(socket.create_server(("127.0.0.1", port)))
    inode = os.fstat(server.fileno()).st_ino
    (tmp_path / "net").mkdir()
    line = (
        f"   0: 0100007F:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 {inode} 1\n"
    )
    (tmp_path / "net/tcp").write_text(f"  sl  local_address …\n{line}")
    (tmp_path / "812/fd").mkdir(parents=True)
    (tmp_path / "812/fd/40").symlink_to(f"socket:[{inode}]")
    (tmp_path / "812/comm").write_text("systemd\n")
    with pytest.raises(StartError, match=r"systemd \(pid 812\) listens on it .* systemctl --user start accelerd"):
        bind_tcp([("127.0.0.1", port)], proc=tmp_path)


NO_IPV6 = """
import fcntl, logging, socket, struct, sys
from accelerd.system.activation import bind_tcp, describe
from accelerd.system.lock import StartError
with socket.socket() as sock:  # a fresh network namespace: its loopback is down
    fcntl.ioctl(sock, 0x8914, struct.pack("16sH14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING
with socket.socket(socket.AF_INET6) as sock:
    loopback = socket.inet_pton(socket.AF_INET6, "::1")
    fcntl.ioctl(sock, 0x8936, struct.pack("16sIi", loopback, 128, socket.if_nametoindex("lo")))  # SIOCDIFADDR
logging.basicConfig(level=logging.INFO)
bound = bind_tcp([(host, 4000) for host in sys.argv[1:]])
print([describe(sock) for sock in bound])
"""


def test_a_missing_ipv6_loopback_is_left_out_with_a_message() -> None:
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", NO_IPV6]
    done = subprocess.run([*command, "127.0.0.1", "::1"], capture_output=True, text=True, check=True)
    assert done.stdout == "['127.0.0.1:4000']\n"
    assert "not listening on [::1]:4000: this machine has no IPv6 loopback" in done.stderr
    alone = subprocess.run([*command, "::1"], capture_output=True, text=True, check=False)
    assert "cannot listen anywhere: not listening on [::1]:4000" in alone.stderr


def test_an_address_that_the_machine_does_not_have_is_an_error() -> None:
    with pytest.raises(StartError, match=r"\[2001:db8::1\]:4000: this machine does not have that address"):
        bind_tcp([("2001:db8::1", 4000)])


def test_a_listening_address_is_one_or_both_loopbacks() -> None:
    assert parse_listen("localhost:80") == [("127.0.0.1", 80), ("::1", 80)]
    assert parse_listen("[::1]:4000") == [("::1", 4000)]
    assert parse_listen("0.0.0.0:1") == [("0.0.0.0", 1)]


def test_a_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "accelerd/accelerd.sock"
    bind_unix(path).close()
    assert path.exists()  # as after a crash: closed, not unlinked
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(str(path))
    with bind_unix(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_socket_that_answers_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "accelerd/accelerd.sock"
    with bind_unix(path) as first:
        with pytest.raises(StartError, match=rf"process {os.getpid()} listens on it"):
            bind_unix(path)
        first.setblocking(True)
        with first.accept()[0], socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_listener_whose_queue_is_full_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "accelerd/accelerd.sock"
    with bind_unix(path, backlog=0), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        with pytest.raises(StartError, match="another process listens on it"):
            bind_unix(path)


def test_something_that_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "accelerd").mkdir()
    path = tmp_path / "accelerd/accelerd.sock"
    target = tmp_path / "target"
    target.write_text("precious")
    path.symlink_to(target)
    with pytest.raises(StartError, match="is not a socket; remove it"):
        bind_unix(path)
    assert path.is_symlink()
    assert target.read_text() == "precious"


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_the_socket_file_has_mode_0600_from_its_first_moment(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "accelerd/accelerd.sock"
    path.parent.mkdir(mode=0o700)
    seen: set[int] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            with contextlib.suppress(FileNotFoundError):
                seen.add(path.stat().st_mode & 0o777)

    watcher = threading.Thread(target=watch)
    watcher.start()
    old = os.umask(umask)
    try:
        for _ in range(50):
            with bind_unix(path):
                assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(old)
        stop.set()
        watcher.join()
    assert all(mode & ~0o600 == 0 for mode in seen)
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_directory_open_to_others_is_closed_first(tmp_path: Path) -> None:
    path = tmp_path / "accelerd/accelerd.sock"
    path.parent.mkdir()
    path.parent.chmod(0o777)
    with bind_unix(path):
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_path_too_long_for_a_socket_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="more than 107 bytes; set a shorter XDG_RUNTIME_DIR"):
        bind_unix(tmp_path / ("x" * 90) / "accelerd.sock")
