"""The shell scripts of packaging/ where they can go wrong without being noticed: consent, what is reused, what is kept.

Each runs with a home directory and a PATH of its own; the fakes on that PATH write down that they were called.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

PACKAGING = Path(__file__).parents[2] / "packaging"
TOOLS = """
    bash env sh cat cut dirname basename grep sed awk tr head tail mkdir rm rmdir mv ln cp readlink realpath find sort
    xargs sha256sum id uname getconf df nproc flock unshare setpriv tar gzip seq sleep chmod touch python3
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
        (self.bin / "id").unlink()
        self.fake("id", "echo 1000")  # an ordinary user, also where the tests run as root
        self.fake("sudo", f'echo "sudo $*" >>{self.called}')

    def fake(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self, *argv: str | Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(a) for a in argv], env={"HOME": str(self.home), "PATH": str(self.bin), "LC_ALL": "C", **env},
            input=stdin, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def shell(self, script: str, code: str, *args: str) -> str:
        """What `code` prints with the functions of `script` at hand."""
        done = self.run("bash", "-c", f'. "$1"; shift; {code}', "-", PACKAGING / script, *args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def snapshot(self) -> Sequence[str]:
        return sorted(str(p.relative_to(self.home)) for p in self.home.rglob("*"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("manager", "install"),
    [
        ("apt-get", "install -qy --no-install-recommends g++"),
        ("dnf", "dnf install -y gcc-c++"),
    ],
)
def test_without_a_terminal_and_without_yes_nothing_is_run(machine: Machine, manager: str, install: str) -> None:
    machine.fake(manager, f"echo {manager} >>{machine.called}")
    done = machine.run(PACKAGING / "install")
    assert done.returncode == 1
    assert "cannot ask for permission" in done.stderr
    assert f"sudo {install}" in done.stderr or install in done.stderr
    assert not machine.called.exists()
    assert not (machine.home / ".local").exists()
    assert not (machine.home / ".config").exists()


def test_yes_runs_exactly_the_commands_that_would_have_been_asked_about(machine: Machine) -> None:
    machine.fake("apt-get", "exit 1")
    code = 'ASSUME_YES=1; install_packages g++; package_commands g++ | sed "s/^/plan /"'
    asked = [line.removeprefix("plan ") for line in machine.shell("lib.sh", code).splitlines()]
    assert len(asked) == 2
    assert machine.called.read_text().splitlines() == asked


def test_what_is_there_already_is_not_asked_for(machine: Machine) -> None:
    machine.fake("apt-get", "exit 1")
    machine.fake("g++", "exit 0")
    assert machine.shell("lib.sh", "missing_packages python cxx archive tools") == ""


def test_without_sudo_the_commands_for_root_are_named(machine: Machine) -> None:
    machine.fake("apt-get", "exit 1")
    (machine.bin / "sudo").unlink()
    done = machine.run(PACKAGING / "build-llama-server", "--yes")
    assert done.returncode == 1
    assert "run this as root" in done.stderr


def test_under_sudo_the_installer_refuses(machine: Machine) -> None:
    machine.fake("id", "echo 0")
    done = machine.run(PACKAGING / "install", "--yes", SUDO_USER="ann")
    assert done.returncode == 1
    assert "run this as ann, without sudo" in done.stderr


def test_an_old_python_is_named_with_what_to_do(machine: Machine) -> None:
    (machine.bin / "python3").unlink()
    machine.fake("python3", '[ "$1" = --version ] && echo "Python 3.9.2" || exit 1')
    done = machine.run("bash", "-c", f". {PACKAGING}/lib.sh; OWN_PYTHON=python3 require_python")
    assert done.returncode == 1
    assert "found: Python 3.9.2" in done.stderr
    assert "ACCELERD_PYTHON" in done.stderr


def finished_build(machine: Machine, key: str) -> Path:
    """A build in the cache, as the script would have left it; its binary is a fake that runs."""
    store = machine.home / ".cache/accelerd/llama-server" / key
    (store / "bin").mkdir(parents=True)
    machine.fake("g++", "echo g++ 12.2.0")
    (store / "build.txt").write_text(machine.shell("build-llama-server", "stamp"))
    binary = store / "bin/llama-server"
    binary.write_text("#!/bin/sh\necho version: fake\n")
    binary.chmod(0o755)
    return binary


def test_a_finished_build_is_used_and_becomes_current(machine: Machine) -> None:
    binary = finished_build(machine, "0123")
    done = machine.run(PACKAGING / "build-llama-server")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(binary)
    assert os.readlink(binary.parents[2] / "current") == "0123"


def test_a_newer_compiler_is_no_reason_to_build_again(machine: Machine) -> None:
    binary = finished_build(machine, "0123")
    machine.fake("g++", "echo g++ 99")
    assert machine.run(PACKAGING / "build-llama-server", "--find").stdout.strip() == str(binary)


@pytest.mark.parametrize("spoil", ["sources", "binary"])
def test_a_build_of_other_sources_or_one_that_does_not_run_is_not_used(machine: Machine, spoil: str) -> None:
    binary = finished_build(machine, "0123")
    if spoil == "sources":
        stamp = binary.parents[1] / "build.txt"
        stamp.write_text(stamp.read_text().replace("sha256:", "sha256:f"))
    else:
        binary.write_text("#!/bin/sh\nexit 127\n")
    done = machine.run(PACKAGING / "build-llama-server", "--find")
    assert (done.returncode, done.stdout) == (1, "")


def test_progress_without_a_terminal_is_a_line_every_ten_per_cent(machine: Machine) -> None:
    ninja = "".join(f"[{n}/206] Building CXX object {n}.o\nwarning: noise\n" for n in range(1, 207))
    done = machine.run(
        "bash", "-c", f'. {PACKAGING}/build-llama-server; progress "$HOME/build.log"', stdin=ninja
    )  # fmt: skip
    lines = done.stderr.splitlines()
    assert 10 <= len(lines) <= 12
    assert "100 %  step 206 of 206" in lines[-1]
    assert (machine.home / "build.log").read_text() == ninja


def test_units_run_the_program_that_was_installed(machine: Machine) -> None:
    unit = machine.home / "x.service"
    unit.write_text("[Service]\nExecStart=/usr/bin/accelerd --x\nExecReload=-accelctl reload\nExecStartPre=/bin/true\n")
    text = machine.shell("install", 'set_prefix /opt/50%; unit_text "$1"', str(unit))
    assert "ExecStart=/opt/50%%/share/accelerd/venv/bin/accelerd --x\n" in text
    assert "ExecReload=-/opt/50%%/share/accelerd/venv/bin/accelctl reload\n" in text
    assert "ExecStartPre=/bin/true\n" in text


def test_a_file_of_somebody_else_is_not_replaced_by_a_link(machine: Machine) -> None:
    other = machine.home / ".local/bin/accelerd"
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    done = machine.run("bash", "-c", f". {PACKAGING}/install; link accelerd")
    assert done.returncode == 1
    assert "move it away" in done.stderr
    assert other.read_text() == "mine"


def test_configuration_is_written_once_and_quoted(machine: Machine) -> None:
    machine.shell(
        "install", 'mkdir -p "$(dirname "$HELLO")"; : >"$HELLO"; ENGINE=$1; write_config', '/opt/a"b/llama-server'
    )
    machine.shell("install", "ENGINE=/other; write_config")
    assert machine.shell("install", "configured_binary").strip() == '/opt/a"b/llama-server'
    assert machine.shell("install", "configured_models").strip() == "hello"


def test_models_of_the_user_are_enough(machine: Machine) -> None:
    dropin = machine.home / ".config/accelerd/accelerd.toml.d/10.toml"
    dropin.parent.mkdir(parents=True)
    dropin.write_text('[models.qwen]\npath = "/m/qwen.gguf"\n')
    machine.shell("install", "make_model; ENGINE=/x; write_config")
    assert not (machine.home / ".local/share/accelerd/models").exists()
    assert machine.shell("install", "configured_models").strip() == "qwen"


@pytest.mark.parametrize("purge", [False, True])
def test_uninstall_takes_its_own_and_leaves_what_is_yours(machine: Machine, purge: bool) -> None:
    setup = """
    mkdir -p "$VENV/bin" "$PREFIX/bin" "$UNITS" "$CACHE" "$(dirname "$HELLO")" "$(dirname "$CONFIG")"
    ln -s "$VENV/bin/accelerd" "$PREFIX/bin/accelerd"
    ln -s /somewhere/else "$PREFIX/bin/accelctl"
    echo "$UNIT_MARK" >"$UNITS/accelerd.service"; echo "my own" >"$UNITS/accelerd.socket"
    : >"$HELLO"; : >"$(dirname "$HELLO")/mine.gguf"; : >"$CONFIG"
    """
    machine.shell("install", setup)
    done = machine.run(PACKAGING / "uninstall", *(["--purge"] if purge else []))
    assert done.returncode == 0, done.stderr
    left = {path for path in machine.snapshot() if not (machine.home / path).is_dir()}
    mine = {".local/bin/accelctl", ".config/systemd/user/accelerd.socket", ".local/share/accelerd/models/mine.gguf"}
    kept = {".config/accelerd/accelerd.toml", ".local/share/accelerd/models/hello.gguf"}
    assert left == (mine if purge else mine | kept)
    assert not (machine.home / ".local/share/accelerd/venv").exists()
