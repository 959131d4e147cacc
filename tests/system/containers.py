"""Rootless podman and toolbox for tests, and the pytest fixture `container_manager` that gives them.

A user manager (systemd_user.py) whose user has podman and toolbox and an image made on this machine, in a home of its
own: nothing of the user's own containers is seen or touched. The image is kept in ~/.cache/accelerd/test-images. Where
the machine cannot do it, the tests fail and say why.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from tests.system import systemd_user
from tests.system.systemd_user import UserManager

IMAGE = "localhost/accelerd-test:1"
PACKAGES = ("bash", "hostname", "libcap2-bin", "mount", "passwd", "procps", "python3", "util-linux")  # in the image
LEFT_OUT = ("man", "doc", "locale", "zoneinfo", "info")  # below /usr/share
PROGRAMS = ("podman", "toolbox", "crun", "conmon", "newuidmap", "slirp4netns", "catatonit")
DEBIAN = (
    "apt-get install podman podman-toolbox uidmap slirp4netns fuse-overlayfs crun catatonit netavark aardvark-dns "
    "mmdebstrap dbus-user-session"
)
JOURNALD = Path("/run/systemd/journal/socket")
LOADER = re.compile(rb"/run/host(/(?:usr/)?lib[\w/.-]*/ld-linux[\w.-]*)(?=\0)")
SUBIDS = 600_000_000  # where the private user's further ids begin: nobody's account has them
# Neither keyrings nor sysctls, which a machine that is a container itself (systemd-nspawn) may not give.
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=16384:16384"]
pids_limit = 0
keyring = false
default_sysctls = []
[engine]
cgroup_manager = "systemd"
"""
WITHOUT_JOURNALD = 'events_logger = "file"\n'


class ContainerManager(UserManager):
    """A user manager whose user can run podman and toolbox."""

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        base = {**super().environment(), "USER": self.user, "LOGNAME": self.user, "SHELL": "/bin/bash"}
        if self.programs.is_dir():
            base["PATH"] = f"{self.programs}:{base['PATH']}"
        return {**base, **(extra or {})}

    @property
    def programs(self) -> Path:
        """What goes before the machine's own programs, if anything does."""
        return self.base / "bin"


@contextmanager
def container_manager_for_session() -> Iterator[ContainerManager]:
    """A user manager whose user has podman, toolbox and IMAGE."""
    began = time.monotonic()
    _require()
    tar = _image()
    built = time.monotonic()
    with contextmanager(_world)() as manager:
        store = _store(manager)
        try:
            settings = CONTAINERS_CONF if JOURNALD.exists() else CONTAINERS_CONF + WITHOUT_JOURNALD
            manager.write(manager.home / ".config/containers/containers.conf", settings)
            storage = f'[storage]\ndriver = "overlay"\ngraphroot = "{store}"\n'
            manager.write(manager.home / ".config/containers/storage.conf", storage)
            _runnable_toolbox(manager)
            with tar.open("rb") as file:
                _import(manager, file)
            done = time.monotonic()
            print(f"containers prepared: image {built - began:.1f} s, manager and import {done - built:.1f} s")
            yield manager
        finally:
            manager.run(["podman", "rm", "--all", "--force", "--time", "0"], check=False, timeout=180)
            # files of other ids, which only this user namespace can remove; an image's own removal takes far longer
            manager.run(["podman", "unshare", "rm", "-rf", str(store)], check=False, timeout=180)
            shutil.rmtree(store, ignore_errors=True)


def _store(manager: ContainerManager) -> Path:
    """Where containers and images lie: not below the private home in /tmp, which may be memory and small."""
    return Path(manager.run(["mktemp", "--directory", "/var/tmp/accelerd-test-store-XXXXXX"]).stdout.strip())


def _require() -> None:
    missing = [name for name in PROGRAMS if not program(name)]
    if missing:
        pytest.fail(f"tests of containers need {', '.join(missing)} ({DEBIAN})", pytrace=False)
    with Path("/proc/sys/user/max_user_namespaces").open() as file:
        if int(file.read()) == 0:
            pytest.fail("tests of containers need user namespaces: sysctl user.max_user_namespaces is 0", pytrace=False)


def program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/libexec/podman:/usr/lib/podman")


def _runnable_toolbox(manager: ContainerManager) -> None:
    """See to it that there is a toolbox program that can be executed.

    Distributions link it against the loader below /run/host, so that one program serves on both sides; there a host is
    to have a link to /. Where it has none (inside systemd-nspawn it holds other things; no systemd made it), the tests
    get a copy of the program that names the loader where it is.
    """
    if manager.run(["toolbox", "--version"], check=False).returncode == 0:
        return
    linked = Path(program("toolbox") or "").read_bytes()
    found = LOADER.search(linked)
    if found is None:
        trouble = manager.run(["toolbox", "--version"], check=False).stderr
        pytest.fail(f"toolbox does not run here: {trouble}", pytrace=False)
    fitting = found[1].ljust(len(found[0]), b"\0")
    copy = manager.directory(manager.programs) / "toolbox"
    manager.write(copy, "", 0o700)
    copy.write_bytes(linked.replace(found[0], fitting))
    manager.run(["toolbox", "--version"])


def _import(manager: ContainerManager, tar: object) -> None:
    """The private user cannot read the cache of the one who runs the tests: it is given through a pipe."""
    changes = ["--change", "LABEL com.github.containers.toolbox=true", "--change", 'CMD ["/bin/bash"]']
    process = manager.popen(
        ["podman", "import", "--quiet", *changes, "-", IMAGE],
        stdin=tar, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    out, _ = process.communicate(timeout=300)
    if process.returncode != 0:
        pytest.fail(f"rootless podman does not work here: {out}", pytrace=False)


# --- the image --------------------------------------------------------------------------------------------------


def _image() -> Path:
    """The root file system as a tar file, from the cache or made now."""
    suite, sources = _debian()
    key = hashlib.sha256(repr((suite, PACKAGES, LEFT_OUT)).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "accelerd/test-images" / key
    cache.mkdir(parents=True, exist_ok=True)
    tar = cache / "rootfs.tar"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once make it once
        if not tar.exists():
            _make(suite, sources, tar)
    return tar


def _debian() -> tuple[str, list[str]]:
    """The release to make and the files that say where packages come from: those of this machine."""
    if not shutil.which("mmdebstrap"):
        pytest.fail("tests of containers make their image with mmdebstrap: apt-get install mmdebstrap", pytrace=False)
    words = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    suite = words.get("VERSION_CODENAME", "").strip('"')
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    sources = [str(f) for f in files if f.suffix in (".list", ".sources") and f.is_file() and f.stat().st_size]
    if not suite or not sources:
        pytest.fail(
            "tests of containers make their image from this machine's apt sources: there are none", pytrace=False
        )
    return suite, sources


def _make(suite: str, sources: list[str], tar: Path) -> None:
    new = tar.with_suffix(".new.tar")
    log = tar.with_suffix(".log")
    command = [
        "mmdebstrap", "--variant=essential", f"--mode={'root' if os.geteuid() == 0 else 'unshare'}", "--format=tar",
        '--aptopt=Acquire::Check-Valid-Until "false"', '--aptopt=Acquire::Languages "none"',
        "--dpkgopt=force-unsafe-io", *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT),
        '--customize-hook=rm -rf "$1"/etc/apt/sources.list* "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*',
        f"--include={','.join(PACKAGES)}", suite, str(new), *sources,
    ]  # fmt: skip
    with log.open("w") as output:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        new.unlink(missing_ok=True)
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        pytest.fail(f"cannot make the image for tests of containers:\n{tail}", pytrace=False)
    new.rename(tar)


# --- the world of root without systemd --------------------------------------------------------------------------


def _world() -> Iterator[ContainerManager]:
    if os.geteuid() != 0:
        found = systemd_user.session_manager(ContainerManager)
    else:
        script = Path(__file__).with_name("container_world.sh")
        found = systemd_user.private_manager(ContainerManager, script, _accounts)
    yield from cast(Iterator[ContainerManager], found)


def _accounts(base: Path) -> None:
    """The private user's group and further ids, for the files that the world sees instead of those in /etc."""
    group = Path("/etc/group").read_text()
    (base / "group").write_text(f"{group}{systemd_user.PRIVATE_USER}:x:{systemd_user.PRIVATE_ID}:\n")
    (base / "subid").write_text(f"{systemd_user.PRIVATE_USER}:{SUBIDS}:65536\n")
    for name in ("group", "subid"):
        (base / name).chmod(0o644)


@pytest.fixture(scope="session")
def container_manager() -> Iterator[ContainerManager]:
    """A user manager whose user has podman, toolbox and IMAGE; one for all tests."""
    with container_manager_for_session() as manager:
        yield manager
