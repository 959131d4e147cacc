"""The instance lock: one holder, a clear text for the second, and no trust in planted files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from accelerd.system.lock import InstanceLock, StartError
from accelerd.system.private_files import NotPrivate, open_private_dir

HOLDER = """
import sys
from pathlib import Path
from accelerd.system.lock import InstanceLock
with InstanceLock.acquire(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run/accelerd/accelerd.lock"


def test_a_second_instance_is_told_the_pid_of_the_first_and_disturbs_nothing(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(StartError, match=rf"another accelerd \(pid {first.pid}\) already runs .* stop it first"):
            InstanceLock.acquire(path)
        assert path.read_text() == f"{first.pid}\n"
        first.stdin.close()
        assert first.wait(10) == 0
    with InstanceLock.acquire(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_the_lock_of_a_killed_holder_is_free(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        first.kill()
        first.wait(10)
    with InstanceLock.acquire(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_release_lets_the_next_one_in_and_keeps_the_file(path: Path) -> None:
    lock = InstanceLock.acquire(path)
    lock.release()
    lock.release()
    assert path.read_text() == ""
    InstanceLock.acquire(path).release()


def test_children_do_not_inherit_the_lock(path: Path) -> None:
    with (
        InstanceLock.acquire(path) as lock,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as child,
    ):
        assert child.stdin is not None
        lock.release()
        InstanceLock.acquire(path).release()
        child.stdin.close()


def test_the_directory_and_the_file_are_for_this_user_only(path: Path) -> None:
    path.parent.mkdir(parents=True, mode=0o777)
    path.parent.chmod(0o755)
    with InstanceLock.acquire(path):
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_planted_link_is_refused_and_its_target_untouched(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.parent.mkdir(parents=True)
    path.symlink_to(victim)
    with pytest.raises(StartError, match="cannot open the lock file"):
        InstanceLock.acquire(path)
    assert victim.read_text() == "precious"


def test_a_planted_fifo_is_refused_without_waiting(path: Path) -> None:
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(StartError, match="not a regular file"):
        InstanceLock.acquire(path)


def test_a_linked_or_occupied_runtime_directory_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path.parent.parent.mkdir()
    path.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartError, match="symbolic link"):
        InstanceLock.acquire(path)
    path.parent.unlink()
    path.parent.write_text("")
    with pytest.raises(StartError, match="not a directory"):
        InstanceLock.acquire(path)


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    theirs = Path("/usr")
    if os.geteuid() == 0:
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        os.chown(theirs, 1, 1)
    mode = theirs.stat().st_mode
    with pytest.raises(NotPrivate, match="belongs to uid"):
        open_private_dir(theirs)
    assert theirs.stat().st_mode == mode
