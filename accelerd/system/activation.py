"""The sockets that clients connect to: passed by systemd (socket activation), or bound here, all of them or none.

The sockets listen, and connections wait in the kernel's queue until the caller accepts them. The caller must pass
BACKLOG to asyncio, which calls listen() again, with 100. It must never call shutdown() on a listening socket: systemd
holds the same socket, so that no connection is refused during a restart.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import socket
import stat
import struct
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from accelerd.base.proc import listeners, pids, read_file
from accelerd.base.proc import sockets as proc_sockets
from accelerd.system.lock import StartError
from accelerd.system.private_files import open_private_dir

log = logging.getLogger(__name__)

BACKLOG: Final = 1024
QUEUED: Final = "queued-"  # begins the names of connections that wait for the next daemon, see sd_notify
FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
UNIX_PATH_LIMIT: Final = 107  # bytes in sockaddr_un without the final NUL
LISTEN_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


Address = tuple[str, int]  # a numeric host, without brackets, and a port


class Passed(Struct, frozen=True):
    """The sockets that systemd passed, in its order: TCP, and unix for the control socket.

    Each with its FileDescriptorName=, which is the name of its socket unit unless that sets another.
    """

    tcp: list[tuple[str, socket.socket]]
    unix: list[tuple[str, socket.socket]]
    # connections that systemd kept, each with the memory file that was stored with it
    queued: list[tuple[socket.socket, bytes]] = field(default_factory=list)
    stored: tuple[str, ...] = ()  # the names under which systemd still keeps them


def sd_listen_fds(env: MutableMapping[str, str] | None = None) -> Passed:
    """The sockets that systemd passed to this process; the LISTEN_* variables are removed.

    StartError for anything but a listening stream socket of a family that is served.
    """
    env = os.environ if env is None else env
    given = {name: env.pop(name, "") for name in LISTEN_VARIABLES}
    if given["LISTEN_PID"] != str(os.getpid()):
        return Passed([], [])
    count = given["LISTEN_FDS"]
    if not count.isdecimal():
        raise StartError(f"cannot read LISTEN_FDS={count!r}: start accelerd through its socket unit or without it")
    names = given["LISTEN_FDNAMES"].split(":") if given["LISTEN_FDNAMES"] else []
    found = Passed([], [])
    stored: dict[str, list[int]] = {}
    try:
        for index in range(int(count)):
            name = names[index] if index < len(names) else "unknown"
            if name.startswith(QUEUED):
                os.set_inheritable(FIRST_FD + index, False)
                stored.setdefault(name, []).append(FIRST_FD + index)
                continue
            sock = _adopt(FIRST_FD + index, name)
            (found.unix if sock.family == socket.AF_UNIX else found.tcp).append((name, sock))
    except BaseException:
        close_all(sock for _, sock in (*found.tcp, *found.unix))
        raise
    return replace(found, queued=list(filter(None, map(_pair, stored.values()))), stored=tuple(stored))


def _pair(descriptors: list[int]) -> tuple[socket.socket, bytes] | None:
    """A connection and the content of the memory file with it; None where the client has gone meanwhile."""
    sock, data = None, b""
    for descriptor in descriptors:
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            sock = socket.socket(fileno=descriptor)
            sock.setblocking(False)
        else:
            with open(descriptor, "rb") as file:
                file.seek(0)
                data = file.read()
    if sock is None or not data:
        close_all([sock] if sock is not None else [])
        return None
    return sock, data


def bind_tcp(addresses: Iterable[Address], *, least: int = 1, proc: Path = Path("/proc")) -> list[socket.socket]:
    """Listen on every address or, with StartError, on none of them.

    If this machine has no IPv6 loopback it is skipped with a message, provided that `least` others could be bound.
    """
    bound: list[socket.socket] = []
    skipped = ""
    try:
        for host, port in addresses:
            try:
                bound.append(_listen_tcp(host, port))
            except OSError as error:
                if host == "::1" and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    skipped = f"not listening on {show_address(host, port)}: this machine has no IPv6 loopback"
                    log.info("%s", skipped)
                    continue
                raise StartError(_explain_bind(host, port, error, proc)) from error
        if len(bound) < least:
            raise StartError("cannot listen anywhere: " + (skipped or "no address is configured"))
    except BaseException:
        close_all(bound)
        raise
    return bound


def bind_unix(path: Path, *, backlog: int = BACKLOG) -> socket.socket:
    """Listen on `path`, with mode 0600 from the start, in a private directory.

    The InstanceLock must be held: only then can a socket file that nobody listens on be removed as a leftover.
    StartError.
    """
    if len(os.fsencode(path)) > UNIX_PATH_LIMIT:
        raise StartError(
            f"cannot listen on {path}: the path has more than {UNIX_PATH_LIMIT} bytes; set a shorter XDG_RUNTIME_DIR"
        )
    try:
        directory = open_private_dir(path.parent)
    except OSError as error:
        raise StartError(f"cannot use the runtime directory {path.parent}: {error.strerror or error}") from error
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _remove_stale(path, directory)
        # Linux gives the file the mode of the unbound socket, less the umask.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(str(path))
        os.chmod(path.name, 0o600, dir_fd=directory)  # in case the umask removes the owner's bits
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise StartError(f"cannot listen on {path}: {error.strerror or error}") from error
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(directory)
    return sock


def parse_listen(text: str) -> list[Address]:
    """The addresses of one element of server.listen; "localhost" is both loopback addresses."""
    host, _, port = text.rpartition(":")
    hosts = ("127.0.0.1", "::1") if host == "localhost" else (host.strip("[]"),)
    return [(name, int(port)) for name in hosts]


def overlap(one: Address, other: Address) -> bool:
    """May one be in the way of the other? So may "all addresses" be of each."""
    everywhere = any(ipaddress.ip_address(host).is_unspecified for host, _ in (one, other))
    return one == other or (one[1] == other[1] and everywhere)


def covers(listening: Address, local: Address) -> bool:
    """Is a connection to our address `local` one that is accepted where we listen?"""
    host, own = ipaddress.ip_address(listening[0]), ipaddress.ip_address(local[0])
    return listening[1] == local[1] and (host == own or (host.is_unspecified and host.version == own.version))


def address_of(sock: socket.socket) -> Address:
    """Where a listening TCP socket listens."""
    host, port = sock.getsockname()[:2]
    return host, port


def describe(sock: socket.socket) -> str:
    """Where a listening socket listens, for people: "127.0.0.1:4000", "[::1]:4000" or a path."""
    address = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return os.fsdecode(address) if address else "(unnamed)"
    return show_address(*address_of(sock))


def show_address(host: str, port: int) -> str:
    """ "127.0.0.1:4000" or "[::1]:4000"."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Pid and uid at the other end of a unix socket."""
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return pid, uid


def close_all(sockets: Iterable[socket.socket]) -> None:
    """Close every socket, without shutting any down."""
    for sock in sockets:
        sock.close()


def _adopt(fd: int, name: str) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise StartError(f"cannot use descriptor {fd} ({name}) from systemd: {error.strerror or error}") from error
    if (
        sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
        or sock.type != socket.SOCK_STREAM
        or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        sock.close()
        raise StartError(
            f"cannot use descriptor {fd} ({name}) from systemd: it is not a listening stream socket; "
            "use ListenStream= with Accept=no in the socket unit"
        )
    sock.setblocking(False)
    return sock


def _listen_tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        info = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        sock.bind(info[0][4])
        sock.listen(BACKLOG)  # with SO_REUSEADDR a second listener is refused here, not in bind
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: Path, directory: int) -> None:
    """Unlink a socket file that nobody listens on. StartError if somebody does, or if it is not a socket."""
    try:
        found = os.stat(path.name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise StartError(f"cannot listen on {path}: the file exists and is not a socket; remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path.name, dir_fd=directory)
            return
        except BlockingIOError:
            who = "another process"  # its queue is full
        else:
            who = f"process {peer_of(probe)[0]}"
    raise StartError(
        f"cannot listen on {path}: {who} listens on it; "
        "if that is systemd, start accelerd with: systemctl --user start accelerd"
    )


def _explain_bind(host: str, port: int, error: OSError, proc: Path) -> str:
    where = show_address(host, port)
    if error.errno == errno.EADDRINUSE:
        pid, name = find_port_owner(host, port, proc)
        if name == "systemd":
            return (
                f"cannot listen on {where}: systemd (pid {pid}) listens on it for a socket unit; start accelerd "
                "with: systemctl --user start accelerd (or first run: systemctl --user stop accelerd.socket)"
            )
        who = f"{name} (pid {pid})" if pid else "a program of another user"
        return f"cannot listen on {where}: {who} uses the port; stop it, or change [server] listen in accelerd.toml"
    if error.errno == errno.EACCES:
        return f"cannot listen on {where}: ports below 1024 need root; choose another in [server] listen"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen on {where}: this machine does not have that address; change [server] listen"
    return f"cannot listen on {where}: {error.strerror or error}"


def find_port_owner(host: str, port: int, proc: Path = Path("/proc")) -> tuple[int, str]:
    """The pid and the name of the process because of which host:port cannot be bound; (0, ""): it cannot be seen.

    For a message, never to decide anything. Looks at every process that this user may look into.
    """
    wanted = ipaddress.ip_address(host)
    try:
        listening = list(listeners(proc))
    except OSError:
        return 0, ""
    inodes = {inode for at, number, inode in listening if number == port and (at == wanted or at.is_unspecified)}
    for pid in sorted(pids(proc)) if inodes else ():
        if inodes & proc_sockets(proc, pid) and (name := read_file(proc, pid, "comm")):
            return pid, name.decode(errors="replace").strip()
    return 0, ""
