"""A real `systemd --user` for tests, and the pytest fixture `user_manager` that gives it.

It is one of the tests' own, with a home, a runtime directory and units of its own: nothing of the user's is seen or
disturbed. Root gets it for an unprivileged user that exists only inside (private_manager.sh), also on a machine that
was not booted with systemd; an ordinary user gets it below the manager that runs already (session_manager.sh).
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("private_manager.sh")
SESSION_SCRIPT = Path(__file__).with_name("session_manager.sh")
SOCKET, HTTP_SOCKET = "accelerd.socket", "accelerd-http.socket"
PRIVATE_USER = "accelerd-test"
PRIVATE_ID = 61184  # the first of systemd's dynamic users: nobody's account has it
NEEDED = "a user's systemd: run the tests in a login session, or as root with systemd, setpriv, unshare and nsenter"


class UserManager:
    """One user manager and everything that a test put into it. Paths belong to the manager's user."""

    def __init__(self, base: Path, prefix: Sequence[str], owner: int | None) -> None:
        """`prefix` makes a command one of the manager's user; `owner` is that user, if it is not who runs the tests."""
        self.base = base
        self.home = base / "home"
        self.runtime_dir = base / "run"
        self._prefix = list(prefix)
        self._owner = owner
        self.user = PRIVATE_USER if owner is not None else getpass.getuser()
        self._units: list[str] = []
        self.logs = self.directory(base / "log")

    # --- commands ---

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a program of this user sees, for accelerd and accelctl as well as for systemctl."""
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.runtime_dir),
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={self.runtime_dir}/bus",
            "PYTHONPATH": str(REPO),
            "PYTHONDONTWRITEBYTECODE": "1",
            **(extra or {}),
        }

    def popen(
        self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, **options: object
    ) -> subprocess.Popen[str]:
        """Start a program as the manager's user."""
        settings = [f"{name}={value}" for name, value in self.environment(env).items()]
        command = [*self._prefix, "env", "-i", "-C", str(self.home), *settings, *map(str, argv)]
        return subprocess.Popen(command, text=True, **options)  # type: ignore[call-overload]

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        check: bool = True,
        timeout: float = 30,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as the manager's user; its output is captured, and shown when `check` fails."""
        pipe = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.popen(argv, env=env, **pipe) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        if check and process.returncode != 0:
            raise AssertionError(f"{list(map(str, argv))} ended with {process.returncode}:\n{out}{err}")
        return subprocess.CompletedProcess(list(map(str, argv)), process.returncode, out, err)

    def systemctl(self, *args: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """systemctl --user."""
        return self.run(["systemctl", "--user", "--no-pager", *args], check=check, timeout=timeout)

    # --- units ---

    def install(self, name: str, text: str, *, dropin: str = "", environment: Mapping[str, str] | None = None) -> None:
        """Write a unit and a drop-in for the test's own settings, load them."""
        directory = self.directory(self.runtime_dir / "systemd" / "user")
        self.write(directory / name, text)
        extra = [dropin]
        if name.endswith(".service"):
            settings = self.environment(environment)
            extra.append("[Service]")
            extra += [f'Environment="{key}={value}"' for key, value in settings.items()]
            log = self.logs / f"{name}.log"
            extra += [f"StandardOutput=append:{log}", f"StandardError=append:{log}"]
        self.write(self.directory(directory / f"{name}.d") / "test.conf", "\n".join(extra) + "\n")
        if name not in self._units and "@." not in name:
            self._units.append(name)
        self.systemctl("daemon-reload")

    def install_sockets(self, port: int) -> None:
        """Our socket units, with a port of the test."""
        for name in (HTTP_SOCKET, SOCKET):
            self.install(name, (REPO / "units/user" / name).read_text().replace(":4000", f":{port}"))

    def properties(self, name: str) -> dict[str, str]:
        """`systemctl show` as a dict."""
        lines = self.systemctl("show", name).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def wait_for(self, name: str, *, timeout: float = 20, **wanted: str) -> dict[str, str]:
        """The properties of a unit as soon as all of `wanted` hold: wait_for("x.service", ActiveState="active")."""
        seen: dict[str, str] = {}

        def holds() -> bool:
            seen.update(self.properties(name))
            return all(seen.get(key) == value for key, value in wanted.items())

        if not wait_until(holds, timeout):
            have = {key: seen.get(key) for key in (*wanted, "ActiveState", "SubState", "Result", "StatusText")}
            raise AssertionError(f"{name} has {have}, wanted {wanted}; it printed:\n{self.output(name)}")
        return seen

    def output(self, name: str) -> str:
        """What a service printed so far, over all its starts."""
        log = self.logs / f"{name}.log"
        return log.read_text("utf-8", "replace") if log.exists() else ""

    # --- files ---

    def directory(self, path: Path) -> Path:
        """Make a directory, mode 0700, for the manager's user."""
        if not path.exists():
            self.directory(path.parent)
            path.mkdir(mode=0o700)
            self._give(path)
        return path

    def write(self, path: Path, text: str, mode: int = 0o600) -> Path:
        """Write a file for the manager's user."""
        self.directory(path.parent)
        path.write_text(text)
        path.chmod(mode)
        self._give(path)
        return path

    def script(self, path: Path, text: str) -> Path:
        """Write an executable for the manager's user."""
        return self.write(path, text, 0o700)

    def close(self) -> None:
        """Stop and forget all units of the test."""
        if self._units:
            shutil.rmtree(
                self.home / ".local/share/systemd/user" / f"{HTTP_SOCKET}.d", ignore_errors=True
            )  # a daemon's
            self.systemctl("kill", "--signal=KILL", *self._units, check=False)
            self.systemctl("stop", *self._units, check=False)
            directory = self.runtime_dir / "systemd" / "user"
            for unit in self._units:
                (directory / unit).unlink(missing_ok=True)
                shutil.rmtree(directory / f"{unit}.d", ignore_errors=True)
            self.systemctl("daemon-reload", check=False)
            self.systemctl("reset-failed", *self._units, check=False)
            self._units.clear()

    def _give(self, path: Path) -> None:
        if self._owner is not None:
            os.chown(path, self._owner, self._owner)


def wait_until(condition: Callable[[], bool], timeout: float = 20) -> bool:
    """Did the condition become true within `timeout` seconds?"""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def session_runtime() -> Path:
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")


def session_manager(kind: type[UserManager] = UserManager) -> Iterator[UserManager]:
    """One of its own below that of the user who runs the tests."""
    if not (session_runtime() / "systemd" / "private").exists() or not shutil.which("systemd-run"):
        pytest.fail(f"this test needs {NEEDED}")
    with _directory() as base:
        _join_user_manager(f"{base.name}-tests.scope")
        run = ["systemd-run", "--user", "--quiet", "--pipe", "--wait", "--collect", f"--unit={base.name}.service"]
        run += ["--property=Delegate=yes", "--property=KillSignal=SIGKILL"]
        holder = _hold([*run, "sh", str(SESSION_SCRIPT), str(base), _systemd()])
        join = 'echo $$ >"$0/shell/cgroup.procs"; exec "$@"'
        yield from _manager(kind, base, holder, lambda group: ["sh", "-c", join, group], None)


def _join_user_manager(scope: str) -> None:
    """Into the control group of the user's systemd: only among what is in there may processes be moved."""
    if f"user@{os.getuid()}.service" in Path("/proc/self/cgroup").read_text():
        return
    name = "org.freedesktop.systemd1"
    call = ["busctl", "--user", "call", name, f"/{name.replace('.', '/')}", f"{name}.Manager", "StartTransientUnit"]
    unit = ["ssa(sv)a(sa(sv))", scope, "fail", "1", "PIDs", "au", "1", str(os.getpid()), "0"]
    subprocess.run([*call, *unit], check=True, capture_output=True, timeout=20)
    if not wait_until(lambda: scope in Path("/proc/self/cgroup").read_text()):
        pytest.fail(f"the user's systemd does not take the test run in: {Path('/proc/self/cgroup').read_text()}")


def private_manager(
    kind: type[UserManager] = UserManager,
    script: Path = SCRIPT,
    prepare: Callable[[Path], None] | None = None,
    *,
    journald: bool = False,
) -> Iterator[UserManager]:
    """One of its own for a user that exists only inside. `prepare` adds to its directory what another script needs.

    With `journald` it has one of its own, too.
    """
    if not all(map(shutil.which, ("unshare", "nsenter", "setpriv", "systemctl"))):
        pytest.fail(f"this test needs {NEEDED}")
    with _directory() as base:
        for part in (base / "home", base / "run"):
            os.chown(part, PRIVATE_ID, PRIVATE_ID)
        passwd = Path("/etc/passwd").read_text()
        (base / "passwd").write_text(f"{passwd}{PRIVATE_USER}:x:{PRIVATE_ID}:{PRIVATE_ID}::{base}/home:/bin/sh\n")
        (base / "passwd").chmod(0o644)
        if prepare is not None:
            prepare(base)
        who = str(PRIVATE_ID)
        settings = [f"JOURNALD={Path(_systemd()).with_name('systemd-journald')}"] if journald else []
        holder = _hold(["unshare", "--mount", "env", *settings, "sh", str(script), str(base), who, who, _systemd()])
        become = f"exec setpriv --reuid={who} --regid={who} --clear-groups --inh-caps=-all"
        join = f'echo $$ >"$0/shell/cgroup.procs"; {become} "$@"'
        enter = ["nsenter", f"--target={holder.pid}", "--mount", "sh", "-c", join]
        yield from _manager(kind, base, holder, lambda group: [*enter, group], PRIVATE_ID)


@contextmanager
def _directory() -> Iterator[Path]:
    """home/ and run/ in a directory that others can enter; its name is short, as a socket's path has 107 bytes."""
    base = Path(tempfile.mkdtemp(prefix="accelerd-test-"))
    try:
        base.chmod(0o755)
        for part in ("home", "run"):
            (base / part).mkdir(mode=0o700)
        yield base
    finally:
        for closed in ("inaccessible", "inaccessible/dir"):  # systemd makes them so that nobody may enter
            with suppress(FileNotFoundError):
                (base / "run/systemd" / closed).chmod(0o700)
        shutil.rmtree(base)


def _systemd() -> str:
    for path in ("/usr/lib/systemd/systemd", "/lib/systemd/systemd"):
        if Path(path).exists():
            return path
    pytest.fail(f"this test needs {NEEDED}")


def _hold(command: list[str]) -> subprocess.Popen[str]:
    """Start what starts a manager, and ends it when its standard input is closed."""
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def _manager(
    kind: type[UserManager],
    base: Path,
    holder: subprocess.Popen[str],
    prefix: Callable[[str], list[str]],
    owner: int | None,
) -> Iterator[UserManager]:
    """The manager in `base` as soon as it is up. `prefix` joins its control group."""
    try:
        entered = wait_until(lambda: (base / "run/systemd/private").exists() or holder.poll() is not None, 20)
        if not entered or holder.poll() is not None:
            log = base / "manager.log"
            shown = log.read_text() if log.exists() else ""
            pytest.fail(f"cannot start a systemd --user of the tests' own: {shown}" + (_close(holder) or ""))
        group = (base / "cgroup").read_text().strip()
        manager = kind(base, prefix(group), owner)
        up = {"running", "degraded"}
        if not wait_until(lambda: manager.systemctl("is-system-running", check=False).stdout.strip() in up):
            pytest.fail(f"the tests' systemd --user does not come up: {(base / 'manager.log').read_text()}")
        for path in (Path(sys.executable), REPO / "accelerd/__init__.py"):
            if manager.run(["test", "-r", path], check=False).returncode != 0:
                pytest.fail(f"an unprivileged user cannot read {path}: put the checkout and the venv where it can")
        yield manager
    finally:
        _close(holder)


def _close(holder: subprocess.Popen[str]) -> str:
    """End the holder by closing its standard input; what it printed."""
    _, err = holder.communicate(timeout=30)
    return err


@pytest.fixture
def journald_manager() -> Iterator[UserManager]:
    """The same where a real journald reads what its services print: the machine's, or one of its own."""
    yield from private_manager(journald=True) if os.geteuid() == 0 else session_manager()


@pytest.fixture
def user_manager() -> Iterator[UserManager]:
    """A running user manager, empty of units; whatever a test installs is stopped and removed."""
    yield from private_manager() if os.geteuid() == 0 else session_manager()
