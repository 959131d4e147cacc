"""A machine on which the scripts of packaging/ run: a home directory, a PATH with a few tools, and fakes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

PACKAGING = Path(__file__).parents[2] / "packaging"
TOOLS = """
    bash env sh cat cut dirname basename grep sed awk tr head tail mkdir rm rmdir mv ln cp readlink realpath find sort
    xargs sha256sum id uname getconf df nproc flock unshare setpriv tar gzip seq sleep chmod touch paste python3
"""


class Machine:
    """A home directory and a PATH with nothing but a few tools and the fakes that a test adds."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.bin = root / "bin"
        self.called = root / "called"
        self.home.mkdir()
        self.bin.mkdir()
        for tool in TOOLS.split():
            found = shutil.which(tool)
            assert found, f"the tests need {tool}"
            (self.bin / tool).symlink_to(found)
        self.fake("id", "echo 1000")  # an ordinary user, also where the tests run as root
        self.fake("sudo", f'echo "sudo $*" >>{self.called}')
        self.env = {"HOME": str(self.home), "PATH": str(self.bin), "LC_ALL": "C"}
        self.env |= {"ACCELERD_SYSTEM_PYTHON": str(self.bin / "python3")}  # and not the real one

    def fake(self, name: str, script: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)  # or the program that it links to would be written
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self, *argv: str | Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(a) for a in argv], env=self.env | env, input=stdin,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def shell(self, script: str, code: str, *args: str) -> str:
        """What `code` prints with the functions of `script` at hand."""
        done = self.run("bash", "-c", f'. "$1"; shift; {code}', "-", PACKAGING / script, *args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def snapshot(self) -> Sequence[str]:
        return sorted(str(p.relative_to(self.home)) for p in self.home.rglob("*"))
