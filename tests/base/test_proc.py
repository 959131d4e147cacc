"""The reader of /proc: processes with names that look like fields, zombies, what may not be looked into, listeners."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from accelerd.base.proc import all_living, listeners, living, pids, read_file, read_stat, sockets

PROC = Path("/proc")


def write_stat(proc: Path, pid: int, rest: str) -> None:
    (proc / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "stat").write_text(f"{pid} {rest}\n")


def test_it_agrees_with_the_kernel_about_this_process() -> None:
    stat = read_stat(PROC, os.getpid())
    assert stat is not None
    assert (stat.pid, stat.parent, stat.group, stat.session) == (
        os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0),
    )  # fmt: skip
    assert stat.name == read_file(PROC, os.getpid(), "comm").decode().rstrip("\n")
    assert stat.alive
    assert os.getpid() in pids(PROC)
    assert all_living(PROC)[os.getpid()].started == stat.started


def test_a_zombie_is_there_but_does_not_live() -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        stat = read_stat(PROC, child.pid)
        assert stat is not None
        assert stat.state == "Z"
        assert living(PROC, child.pid) is None
    assert read_stat(PROC, child.pid) is None


def test_a_name_may_look_like_the_fields_that_follow_it(tmp_path: Path) -> None:
    write_stat(tmp_path, 7, "(a) R 1 (b) S 3 4 5 6 " + " ".join("0" * 14) + " 99")
    stat = read_stat(tmp_path, 7)
    assert stat is not None
    assert (stat.name, stat.state, stat.parent, stat.group, stat.session) == ("a) R 1 (b", "S", 3, 4, 5)
    assert (stat.terminal, stat.started, stat.environment) == (6, 99, (0, 0))


def test_what_is_cut_off_is_no_process(tmp_path: Path) -> None:
    write_stat(tmp_path, 7, "(sh) S 1")
    write_stat(tmp_path, 8, "")
    assert (read_stat(tmp_path, 7), read_stat(tmp_path, 8), read_stat(tmp_path, 9)) == (None, None, None)
    assert read_file(tmp_path, 9, "environ") == b""


def test_what_cannot_be_known_is_an_error_and_no_end(tmp_path: Path) -> None:
    (tmp_path / "7" / "stat").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        living(tmp_path, 7)


def test_who_listens_is_found_by_the_socket_that_it_holds() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.bind(("127.0.0.1", 0))
        found = {port: (str(address), inode) for address, port, inode in listeners(PROC)}
        address, inode = found[server.getsockname()[1]]
        assert address == "127.0.0.1"
        assert inode in sockets(PROC, os.getpid())
        assert client.getsockname()[1] not in found
    assert sockets(PROC, 1 << 22) == set()
