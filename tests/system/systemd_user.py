"""A real `systemd --user` for tests, and the pytest fixture `user_manager` that gives it.

An ordinary user with a running manager gets that one, with units, paths and names of their own, so that the user's own
accelerd is not disturbed. Root on a machine without systemd gets a private one (private_manager.sh) with an
unprivileged user that exists only inside it. Tests spell unit names and specifiers as the shipped units do; `install`
translates where it must.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("private_manager.sh")
PRIVATE_ID = 61184  # the first of systemd's dynamic users: nobody's account has it
UNIT_NAME = re.compile(r"\baccelerd(?=\.(?:service|socket)\b)")
NEEDED = "a user's systemd: run the tests in a login session, or as root with systemd, setpriv, unshare and nsenter"


class UserManager:
    """One user manager and everything that a test put into it. Paths belong to the manager's user."""

    def __init__(self, base: Path, *, home: Path, runtime_dir: Path, suffix: str, prefix: Sequence[str] = ()) -> None:
        self.base = base
        self.home = home
        self.runtime_dir = runtime_dir  # what %t means in an installed unit, and $XDG_RUNTIME_DIR of its service
        self._suffix = suffix  # of unit names; empty in a private manager
        self._prefix = list(prefix)  # enters the private manager's namespace
        self._units: list[str] = []
        self._owner = (PRIVATE_ID, PRIVATE_ID) if self.private else None
        self.logs = self.directory(base / "log")

    @property
    def private(self) -> bool:
        return bool(self._prefix)

    @property
    def bus_runtime(self) -> Path:
        """$XDG_RUNTIME_DIR of the manager itself."""
        return self.runtime_dir if self.private else session_runtime()

    # --- commands ---

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a program of this user sees, for accelerd and accelctl as well as for systemctl."""
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.runtime_dir),
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={self.bus_runtime}/bus",
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
        """systemctl --user, with unit names as the shipped units spell them."""
        argv = ["systemctl", "--user", "--no-pager", *(self._rename(arg) for arg in args)]
        return self.run(argv, check=check, timeout=timeout, env={"XDG_RUNTIME_DIR": str(self.bus_runtime)})

    # --- units ---

    def unit(self, name: str) -> str:
        """The name under which a unit of the test really runs."""
        return self._rename(name)

    def install(self, name: str, text: str, *, dropin: str = "", environment: Mapping[str, str] | None = None) -> str:
        """Write a unit and a drop-in for the test's own settings, load them; the unit's real name."""
        real = self.unit(name)
        directory = self.directory(self.bus_runtime / "systemd" / "user")
        if not self.private:
            text = self._rename(text.replace("%t", str(self.runtime_dir)).replace("%h", str(self.home)))
        self.write(directory / real, text)
        extra = [dropin]
        if name.endswith(".service"):
            settings = self.environment(environment)
            extra.append("[Service]")
            extra += [f'Environment="{key}={value}"' for key, value in settings.items()]
            log = self.logs / f"{real}.log"
            extra += [f"StandardOutput=append:{log}", f"StandardError=append:{log}"]
        self.write(self.directory(directory / f"{real}.d") / "test.conf", "\n".join(extra) + "\n")
        if real not in self._units:
            self._units.append(real)
        self.systemctl("daemon-reload")
        return real

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
        log = self.logs / f"{self.unit(name)}.log"
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
            self.systemctl("kill", "--signal=KILL", *self._units, check=False)
            self.systemctl("stop", *self._units, check=False)
            directory = self.bus_runtime / "systemd" / "user"
            for unit in self._units:
                (directory / unit).unlink(missing_ok=True)
                shutil.rmtree(directory / f"{unit}.d", ignore_errors=True)
            self.systemctl("daemon-reload", check=False)
            self.systemctl("reset-failed", *self._units, check=False)
            self._units.clear()

    def _rename(self, text: str) -> str:
        return UNIT_NAME.sub(f"accelerd{self._suffix}", text) if self._suffix else text

    def _give(self, path: Path) -> None:
        if self._owner is not None:
            os.chown(path, *self._owner)


def wait_until(condition: Callable[[], bool], timeout: float = 20) -> bool:
    """Did the condition become true within `timeout` seconds?"""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def free_port() -> int:
    """A TCP port that is free on both loopbacks."""
    for _ in range(50):
        with socket.create_server(("127.0.0.1", 0)) as four:
            port = int(four.getsockname()[1])
            try:
                with socket.create_server(("::1", port), family=socket.AF_INET6):
                    return port
            except OSError:
                continue
    raise AssertionError("no port is free on 127.0.0.1 and ::1")


def session_runtime() -> Path:
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")


def session_manager(kind: type[UserManager] = UserManager) -> Iterator[UserManager]:
    """The manager of the user who runs the tests."""
    if not (session_runtime() / "systemd" / "private").exists():
        pytest.fail(f"this test needs {NEEDED}")
    name = f"accelerd-test-{uuid.uuid4().hex[:8]}"
    runtime = session_runtime() / name  # short: a socket's path has 107 bytes
    base = Path(tempfile.mkdtemp(prefix="accelerd-test-"))
    try:
        runtime.mkdir(mode=0o700)
        (base / "home").mkdir(mode=0o700)
        manager = kind(base, home=base / "home", runtime_dir=runtime, suffix=name.removeprefix("accelerd"))
        try:
            yield manager
        finally:
            manager.close()
    finally:
        shutil.rmtree(runtime, ignore_errors=True)
        shutil.rmtree(base, ignore_errors=True)


def private_manager(
    kind: type[UserManager] = UserManager, script: Path = SCRIPT, prepare: Callable[[Path], None] | None = None
) -> Iterator[UserManager]:
    """One of its own for a user that exists only inside. `prepare` adds to its directory what another script needs."""
    program = next((path for path in ("/usr/lib/systemd/systemd", "/lib/systemd/systemd") if Path(path).exists()), None)
    if program is None or not all(map(shutil.which, ("unshare", "nsenter", "setpriv", "systemctl"))):
        pytest.fail(f"this test needs {NEEDED}")
    base = Path(tempfile.mkdtemp(prefix="accelerd-test-"))
    base.chmod(0o755)
    for part in ("home", "run"):
        (base / part).mkdir(mode=0o700)
        os.chown(base / part, PRIVATE_ID, PRIVATE_ID)
    passwd = Path("/etc/passwd").read_text()
    (base / "passwd").write_text(f"{passwd}accelerd-test:x:{PRIVATE_ID}:{PRIVATE_ID}::{base}/home:/bin/sh\n")
    (base / "passwd").chmod(0o644)
    who = str(PRIVATE_ID)
    if prepare is not None:
        prepare(base)
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", str(script), str(base), who, who, program],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        entered = wait_until(lambda: (base / "run/systemd/private").exists() or holder.poll() is not None, 20)
        if not entered or holder.poll() is not None:
            log = base / "manager.log"
            shown = log.read_text() if log.exists() else ""
            pytest.fail(f"cannot start a private systemd --user: {shown}" + (_close(holder) or ""))
        group = (base / "cgroup").read_text().strip()
        join = f'echo $$ >{group}/shell/cgroup.procs; exec setpriv --reuid={who} --regid={who} --clear-groups \
--inh-caps=-all "$@"'
        prefix = ["nsenter", f"--target={holder.pid}", "--mount", "sh", "-c", join, "sh"]
        manager = kind(base, home=base / "home", runtime_dir=base / "run", suffix="", prefix=prefix)
        up = {"running", "degraded"}
        if not wait_until(lambda: manager.systemctl("is-system-running", check=False).stdout.strip() in up):
            pytest.fail(f"the private systemd --user does not come up: {(base / 'manager.log').read_text()}")
        for path in (Path(sys.executable), REPO / "accelerd/__init__.py"):
            if manager.run(["test", "-r", path], check=False).returncode != 0:
                pytest.fail(f"an unprivileged user cannot read {path}: put the checkout and the venv where it can")
        yield manager
    finally:
        _close(holder)
        shutil.rmtree(base, ignore_errors=True)


def _close(holder: subprocess.Popen[str]) -> str:
    """End the holder by closing its standard input; what it printed."""
    _, err = holder.communicate(timeout=30)
    return err


@pytest.fixture
def user_manager() -> Iterator[UserManager]:
    """A running user manager, empty of units; whatever a test installs is stopped and removed."""
    yield from private_manager() if os.geteuid() == 0 else session_manager()
