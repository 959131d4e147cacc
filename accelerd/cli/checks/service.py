"""The daemon and what it runs under: systemd's user manager, ports, the control socket, the journal."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import accelerd
from accelerd import __version__
from accelerd.base import names
from accelerd.base.proc import listeners
from accelerd.cli.checks.base import Check, CheckContext
from accelerd.cli.failure import Failure
from accelerd.cli.programs import LISTENING, REAPER, SERVICE, SOCKET, START, START_AGAIN, unit_state, why_down
from accelerd.system.activation import find_port_owner, overlap, parse_listen, show_address

RELOAD = "accelctl reload"


def daemon(s: CheckContext) -> Iterator[Check]:
    status = s.status
    if isinstance(status, Failure):
        down = why_down(s.programs) if status.code == "not_running" else None
        fix = (down.command or down.hint if down else START) if status.code == "not_running" else status.hint
        yield Check("daemon", "fail", status.message, fix)
    elif status.get("version") != __version__:
        detail = f"version {status.get('version')} is running, {__version__} is installed"
        yield Check("daemon", "warn", detail, f"systemctl --user restart {names.PROGRAM}")
    else:
        yield Check("daemon", "ok", f"version {__version__}, pid {status.get('pid')}: {status.get('status')}")
    if not isinstance(status, Failure) and status.get("degraded"):
        yield Check("degraded", "warn", str(status["degraded"]), s.checkout_tool("install"))


def level(s: CheckContext) -> Iterator[Check]:
    """Can accelerd set the performance level of the GPUs, and is it as wanted?"""
    found = [] if isinstance(s.status, Failure) else s.status.get("performance") or []
    for gpu in found:
        detail = f"{gpu['name']}: {gpu['reason']}"
        if gpu["state"] == "unable":
            helper = s.checkout_tool("helper")
            yield Check("level", "warn", detail, f"{helper} install" if helper else "see docs/performance-level.md")
        elif gpu["state"] in ("hot", "yielded") or gpu.get("stuck"):
            yield Check("level", "warn", detail, "see docs/performance-level.md")
        else:
            yield Check("level", "ok", detail)


def units(s: CheckContext) -> Iterator[Check]:
    """Are the units installed, is the socket enabled and listening?"""
    found = {unit: unit_state(s.programs, unit) for unit in (SERVICE, SOCKET, names.HTTP_SOCKET_UNIT, REAPER)}
    service, socket = found[SERVICE], found[SOCKET]
    if service is None or socket is None:
        fix = f"log in on a console or by ssh, or run {names.PROGRAM} in a terminal"
        yield Check("units", "warn", "no systemd user manager in this session", fix)
        return
    known = [(name, unit) for name, unit in found.items() if unit is not None]
    missing = [name for name, unit in known if unit.load == "not-found"]
    if missing:
        yield Check("units", "warn", f"{' and '.join(missing)} not installed", install_command(s))
        return
    masked = [name for name, unit in known if unit.load == "masked"]
    if masked:
        fix = f"systemctl --user unmask {' '.join(masked)}"
        yield Check("units", "fail", f"{' and '.join(masked)} masked: systemd refuses to start accelerd", fix)
        return
    broken = next((name for name, unit in known if unit.load != "loaded"), None)
    if broken:
        yield Check("units", "fail", f"{broken} cannot be loaded", f"systemctl --user status {broken}")
        return
    yield Check("units", "ok", f"{SERVICE} is {service.active}, {SOCKET} is {socket.active}")
    if socket.file != "enabled" or socket.active != LISTENING:
        state = "not enabled" if socket.file != "enabled" else socket.active
        fix = START_AGAIN if "failed" in (socket.active, service.active) else f"systemctl --user enable --now {SOCKET}"
        detail = f"{SOCKET} is {state}: connections do not start accelerd, and a restart refuses them"
        yield Check("socket-activation", "warn", detail, fix)
    elif (http := found[names.HTTP_SOCKET_UNIT]) is not None and http.active != LISTENING:
        detail = f"{names.HTTP_SOCKET_UNIT} is {http.active}: until a restart, connections to a port start nothing"
        yield Check("socket-activation", "warn", detail, f"systemctl --user restart {names.PROGRAM}")
    else:
        yield Check("socket-activation", "ok", "a connection starts accelerd")


def install_command(s: CheckContext) -> str:
    """The installer of a checkout, or a command that copies the units of an installed package."""
    source = Path(accelerd.__file__).parent / "_units/user"
    target = s.roots.home / ".local/share/systemd/user"
    units = " ".join(f"{source}/{name}" for name in (SERVICE, SOCKET, names.HTTP_SOCKET_UNIT, names.REAPER_UNIT))
    plain = f"install -Dm644 -t {target} {units} && systemctl --user daemon-reload"
    return s.checkout_tool("install") or plain


def linger(s: CheckContext) -> Iterator[Check]:
    """Does the user manager run without a login? Wanted for models that should be served after a boot."""
    outcome = s.programs.run(["loginctl", "show-user", s.user, "--property=Linger", "--value"])
    if outcome.status == 127:
        fix = f"run {names.PROGRAM} from your own service manager"
        yield Check("linger", "warn", "loginctl is not installed: accelerd ends with your session", fix)
        return
    if outcome.stdout.strip() == "yes":
        yield Check("linger", "ok", "on: accelerd runs without a login")
    else:
        detail = "off: accelerd and its models run only while you are logged in"
        yield Check("linger", "warn", detail, s.linger_command)


def ports(s: CheckContext) -> Iterator[Check]:
    """Does the daemon listen where the configuration says, and nowhere else? Without one: could it?"""
    wanted = [show_address(*address) for text in s.config.server.listen for address in parse_listen(text)]
    if isinstance(s.status, Failure):
        for address in wanted:
            yield _port(s, address)
        return
    ours = s.status.get("listen") or []
    lacking = {one["address"]: one["problem"] for one in s.status.get("listeners") or () if one.get("problem")}
    for address in wanted:
        if address in lacking:
            port = address.rpartition(":")[2]
            yield Check("port", "fail", f"{lacking[address]}; accelerd tries again", f"ss -ltnp 'sport = :{port}'")
        elif address in ours:
            yield Check("port", "ok", f"{address} is served by accelerd")
        elif address.startswith("[::1]:") and ours:
            yield Check("port", "ok", f"{address} is not served: this machine has no IPv6 loopback, or had none")
        else:
            yield Check("port", "fail", f"{address} is configured, but accelerd does not listen there", RELOAD)
    for address in ours:
        if address not in wanted:
            yield Check("port", "warn", f"accelerd listens on {address}, which server.listen does not name", RELOAD)


def _port(s: CheckContext, address: str) -> Check:
    """Could accelerd listen there?"""
    [(host, port)] = parse_listen(address)
    taken = False
    with suppress(OSError):
        taken = any(overlap((host, port), (str(at), number)) for at, number, _ in listeners(s.roots.proc))
    if not taken:
        return Check("port", "ok", f"{address} is free")
    socket = unit_state(s.programs, names.HTTP_SOCKET_UNIT)
    pid, name = find_port_owner(host, port, s.roots.proc)
    if socket is not None and socket.active == LISTENING and name in ("", "systemd"):
        return Check("port", "ok", f"{address} is held for accelerd by systemd")
    who = f"{name} (pid {pid})" if pid else "a program of another user"
    advice = f"stop it, or choose another port in [server] listen (ss -ltnp 'sport = :{port}')"
    return Check("port", "fail", f"{address} is in use by {who}", advice)


def control_socket(s: CheckContext) -> Iterator[Check]:
    """Can only its owner use the control socket?"""
    path = s.client.path
    try:
        found = path.stat()
    except FileNotFoundError:
        return  # the daemon is not running: reported already
    except OSError as error:
        yield Check("control-socket", "fail", f"{path}: {error.strerror}", "run accelctl as the user who runs accelerd")
        return
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISSOCK(found.st_mode):
        fix = f"rm {path} && systemctl --user restart {names.PROGRAM}"
        yield Check("control-socket", "fail", f"{path} is not a socket", fix)
    elif found.st_uid != s.uid:
        yield Check("control-socket", "fail", f"{path} belongs to user {found.st_uid}", "run accelctl as that user")
    elif mode & 0o077:
        yield Check("control-socket", "warn", f"{path} has mode {mode:o}", f"chmod 600 {path}")
    else:
        yield Check("control-socket", "ok", f"{path}, for this user only")


def journal(s: CheckContext) -> Iterator[Check]:
    """Can this user read what the daemon logs?"""
    outcome = s.programs.run(["journalctl", "--user", "--quiet", "--no-pager", "-n", "1"])
    if outcome.status == 0:
        yield Check("journal", "ok", f"journalctl --user -u {names.PROGRAM}")
    elif outcome.status == 127:
        fix = f"read the output of {names.PROGRAM} where you start it"
        yield Check("journal", "warn", "journalctl is not installed", fix)
    else:
        reason = (outcome.stderr.strip().splitlines() or ["no reason given"])[-1]
        fix = "sudo usermod -aG systemd-journal $USER, then log in again"
        yield Check("journal", "warn", f"cannot be read: {reason}", fix)
