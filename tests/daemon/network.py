"""Hosts on one machine: network namespaces, each joined to that of a first one by a link that can be cut. Without root.

All of them belong to a user namespace in which the tests' user keeps its name. A shell in the namespace of the first
host makes the others and their links; it and what keeps these ends when the test does, or is killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass

PROGRAMS = {"unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2"}
KEEPER = "unshare --net sh -c 'ip link set lo up && echo ready $$ && exec cat /dev/fd/{alive}' 2>&1 &"  # waits there


class NoNamespacesError(Exception):
    """This machine makes no network namespaces; the text says why."""


@dataclass(frozen=True)
class Host:
    """`ip`: its program `ip`, for the shell; `enter`: what a command is begun with to run there."""

    address: str
    ip: str
    enter: tuple[str, ...]


class Network:
    """`first` reaches every other host, and these reach it; they do not reach each other."""

    def __init__(self) -> None:
        """NoNamespacesError."""
        if lacking := [package for program, package in PROGRAMS.items() if shutil.which(program) is None]:
            raise NoNamespacesError(f"install {' and '.join(sorted(set(lacking)))}")
        argv = ["unshare", "--user", "--map-current-user", "--keep-caps", "--net", "sh"]
        self._alive, ours = os.pipe()  # ends when we do
        self._ours = os.fdopen(ours, "wb")
        self._shell = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=[self._alive],
        )
        self._hosts = 0
        try:
            self._run("ip link set lo up")
        except NoNamespacesError:
            self.close()
            raise
        self.first = Host("127.0.0.1", "ip", self._enter(self._shell.pid))

    def host(self) -> Host:
        """One more."""
        self._hosts += 1
        link, address = f"to{self._hosts}", f"10.99.{self._hosts}"
        self._write(KEEPER.format(alive=self._alive))
        ready, _, keeper = self._read().partition(" ")
        if ready != "ready":
            raise NoNamespacesError(ready + keeper)
        there = f"nsenter --net=/proc/{keeper}/ns/net ip"
        self._run(
            f"ip link add {link} type veth peer name eth0 netns {keeper}",
            f"ip address add {address}.1/30 dev {link}",
            f"ip link set {link} up",
            f"{there} address add {address}.2/30 dev eth0",
            f"{there} link set eth0 up",
        )
        return Host(f"{address}.2", there, self._enter(int(keeper)))

    def cut(self, host: Host) -> None:
        """What is sent there is lost, and nobody says so."""
        self._run(f"{host.ip} link set eth0 down")

    def join(self, host: Host) -> None:
        self._run(f"{host.ip} link set eth0 up")

    def close(self) -> None:
        """When nothing runs on the hosts any more."""
        self._ours.close()
        os.close(self._alive)
        self._shell.communicate(timeout=10)

    def _enter(self, keeper: int) -> tuple[str, ...]:
        user, net = f"--user=/proc/{self._shell.pid}/ns/user", f"--net=/proc/{keeper}/ns/net"
        return "nsenter", user, net, "--preserve-credentials", "--"

    def _run(self, *commands: str) -> None:
        self._write(f"{' && '.join(commands)} && echo done")
        if (said := self._read()) != "done":
            raise NoNamespacesError(said)

    def _write(self, line: str) -> None:
        assert self._shell.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it says is why
            self._shell.stdin.write(f"{line}\n")
            self._shell.stdin.flush()

    def _read(self) -> str:
        assert self._shell.stdout is not None
        return self._shell.stdout.readline().strip() or "its shell has ended"
