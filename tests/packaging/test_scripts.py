"""The shell scripts of packaging/ where they can go wrong without being noticed: consent, what is reused, what is kept.

Each runs with a home directory and a PATH of its own; the fakes on that PATH write down that they were called.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from accelerd.config import check
from tests.packaging.machine import PACKAGING, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("manager", "install"),
    [
        ("apt-get", "install -qy --no-install-recommends python3 python3-venv python3-gi g++"),
        ("dnf", "dnf install -y python3 python3-gobject-base gcc-c++"),
    ],
)
def test_without_a_terminal_and_without_yes_nothing_is_run(machine: Machine, manager: str, install: str) -> None:
    python(machine, "python3")
    machine.fake(manager, f"echo {manager} >>{machine.called}")
    done = machine.run(PACKAGING / "install")
    assert done.returncode == 1
    assert "cannot ask for permission" in done.stderr
    assert f" {install}\n" in done.stderr
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
    assert "run these commands as root" in done.stderr


@pytest.mark.parametrize("script", ["install", "uninstall"])
def test_under_sudo_the_installer_refuses(machine: Machine, script: str) -> None:
    machine.fake("id", "echo 0")
    done = machine.run(PACKAGING / script, "--yes", SUDO_USER="ann")
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


def test_a_llama_server_that_is_named_is_used_on_any_run(machine: Machine) -> None:
    name = 'ENGINE=$1 CHOSEN=1; write_config; remember_engine; echo "$CHANGED"'
    own = "[models.m]\npath = '/m.gguf'\n[engines.llama-server]\nbinary = '/old/llama-server'\n"
    config = machine.home / ".config/accelerd/accelerd.toml"
    config.parent.mkdir(parents=True)
    config.write_text(own)
    assert machine.shell("install", name, "/gpu/llama-server").strip() == "1"
    assert machine.shell("install", "configured_binary").strip() == "/gpu/llama-server"
    assert machine.shell("install", name, "/gpu/llama-server").strip() == "0", "nothing changes the second time"
    assert machine.shell("install", name, "/other/llama-server").strip() == "1"
    found = check(config, machine.home)[0]
    assert found is not None
    assert found.llama_server.binary == "/other/llama-server"
    assert config.read_text() == own
    (config.parent / "accelerd.toml.d/50.toml").write_text('[engines.llama-server]\nbinary = "/mine"\n')
    code = f". {PACKAGING}/install; ENGINE=/x CHOSEN=1; remember_engine"
    done = machine.run("bash", "-c", code)
    assert "names another llama-server, which is used: /mine" in done.stderr


@pytest.mark.parametrize("before", ["", '[engines.llama-server]\nbinary = "/first"\n', None])
def test_a_llama_server_that_does_not_answer_is_not_kept(machine: Machine, before: str | None) -> None:
    """None: there was no configuration at all."""
    config = machine.home / ".config/accelerd/accelerd.toml"
    choices = config.parent / "accelerd.toml.d/00-install.toml"
    hello = "[models.hello]\npath = '/hello.gguf'\n"
    if before is not None:
        choices.parent.mkdir(parents=True)
        config.write_text(hello)
    if before:
        choices.write_text(before)
    machine.fake("accelctl", f'echo "$*" >>{machine.called}; [ "$1" != chat ]')
    code = (
        f". {PACKAGING}/install; explain_failure() {{ exit 9; }}; "
        + """
        VENV=$HOME/venv; mkdir -p "$VENV" "$(dirname "$HELLO")"; ln -sfn "$1" "$VENV/bin"; : >"$HELLO"
        ENGINE=/broken ENGINE_FROM=given CHOSEN=1; write_config; remember_engine; hello"""
    )
    done = machine.run("bash", "-c", code, "-", machine.bin)
    assert done.returncode == 9, done.stderr
    assert "/broken does not serve the model" in done.stderr
    asked = [line.split()[0] for line in machine.called.read_text().splitlines()]
    assert asked == ["chat", "reload"] if before is None else ["unload", "chat", "reload"]
    assert config.exists() is (before is not None)
    assert (choices.read_text() if choices.exists() else "") == (before or "")
    if before is not None:
        assert config.read_text() == hello


def test_a_first_answer_comes_from_the_new_engine_not_from_the_one_that_still_runs(machine: Machine) -> None:
    machine.fake("accelctl", f'echo "$*" >>{machine.called}')
    config = machine.home / ".config/accelerd/accelerd.toml"
    config.parent.mkdir(parents=True)
    config.write_text("[models.hello]\npath = '/hello.gguf'\n")
    code = 'VENV=$HOME/venv; mkdir -p "$VENV"; ln -sfn "$1" "$VENV/bin"; '
    code += "ENGINE=/gpu/llama-server CHOSEN=$2 ENGINE_FROM=$3; remember_engine; hello"
    for chosen, origin, asked in (
        ("1", "ACCELERD_LLAMA_SERVER", ["unload", "chat"]),
        ("1", "ACCELERD_LLAMA_SERVER", ["chat"]),
        ("0", "PATH", ["chat"]),
        ("0", "built from source", ["unload", "chat"]),
    ):
        machine.shell("install", code, str(machine.bin), chosen, origin)
        assert [line.split()[0] for line in machine.called.read_text().splitlines()] == asked, origin
        machine.called.unlink()


@pytest.mark.parametrize(
    "script", ["exit 3", "echo usage: something --else", "[ $1 = --version ] && exit 1; echo --model --port"]
)
def test_a_program_that_is_no_llama_server_is_refused(machine: Machine, script: str) -> None:
    machine.fake("other", script)
    code = f". {PACKAGING}/install; ACCELERD_LLAMA_SERVER=$1 choose_engine"
    done = machine.run("bash", "-c", code, "-", machine.bin / "other")
    assert done.returncode == 1
    assert "ACCELERD_LLAMA_SERVER" in done.stderr
    assert "line " not in machine.run("bash", "-c", code, "-", "/mistyped").stderr
    machine.fake("other", "echo --model --port")
    assert machine.run("bash", "-c", code, "-", machine.bin / "other").returncode == 0


@pytest.mark.parametrize(
    ("listen", "wanted"),
    [
        ('"0.0.0.0:81"', "http://localhost:81/v1"), ('["[::]:82"]', "http://localhost:82/v1"),
        ('["192.168.7.5:83", "127.0.0.1:1"]', "http://192.168.7.5:83/v1"), ('["[::1]:84"]', "http://localhost:84/v1"),
        ('["[fd00::7]:85"]', "http://[fd00::7]:85/v1"), ("[]", "http://localhost:4000/v1"),
    ],
)  # fmt: skip
def test_the_address_that_is_shown_is_one_that_clients_can_use(machine: Machine, listen: str, wanted: str) -> None:
    config = machine.home / ".config/accelerd/accelerd.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f"[server]\nlisten = {listen}\n")
    assert machine.shell("install", "base_url").strip() == wanted


@pytest.mark.parametrize("fresh", [True, False])
def test_where_4000_is_taken_the_next_free_port_is_written(machine: Machine, fresh: bool) -> None:
    """A program of this test has the port: where the machine's own 4000 is in use already, that is the program."""
    config = machine.home / ".config/accelerd/accelerd.toml"
    if not fresh:
        config.parent.mkdir(parents=True)
        config.write_text("# mine\n")
    machine.fake("python", f'PYTHONPATH="{PACKAGING.parent}" exec "{sys.executable}" "$@"')
    code = 'VENV=$HOME/venv; mkdir "$VENV"; ln -s "$1" "$VENV/bin"; ENGINE=/engine; choose_port; write_config; base_url'
    code += '; write_choices binary "$2"'
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            other.bind(("127.0.0.1", 4000))
            other.listen()
        done = machine.run("bash", "-c", f". {PACKAGING}/install; {code}", "-", machine.bin, '"/x"')
    assert done.returncode == 0, done.stderr
    port = int(done.stdout.strip().removeprefix("http://localhost:").removesuffix("/v1"))
    assert 4000 < port < 4100
    assert re.search(rf"port 4000 is in use by .*: accelerd uses port {port}", done.stderr)
    found = check(config, machine.home)[0]
    assert found is not None
    assert found.server.listen == (f"127.0.0.1:{port}", f"[::1]:{port}")
    assert ("listen" in config.read_text()) is fresh, "a new file has it where people look for it"
    assert found.llama_server.binary == "/x", "one choice does not undo another"


def test_a_port_that_the_user_chose_stays(machine: Machine) -> None:
    config = machine.home / ".config/accelerd/accelerd.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[server]\nlisten = "127.0.0.1:4711"\n')
    assert machine.shell("install", "choose_port; base_url").strip() == "http://localhost:4711/v1"
    assert not config.with_name("accelerd.toml.d").exists()


def test_the_owner_of_a_gpu_is_led_to_a_build_that_uses_it(machine: Machine) -> None:
    gpu = {"kind": "gpu", "name": "Radeon RX 7900", "problem": None}
    listed = {"devices": [{"kind": "cpu", "name": "Ryzen"}, gpu, {**gpu, "name": "no access", "problem": "permission"}]}
    machine.fake("accelctl", f"echo '{json.dumps(listed)}'")
    machine.fake("python", f'exec "{sys.executable}" "$@"')
    code = 'VENV=$HOME/venv; mkdir -p "$VENV"; ln -sfn "$1" "$VENV/bin"; rm -f "$CONFIG"; ENGINE=$2; '
    code += "write_config; advise_gpu"
    own = str(machine.home / ".cache/accelerd/llama-server/current/bin/llama-server")
    done = machine.run("bash", "-c", f". {PACKAGING}/install; {code}", "-", machine.bin, own)
    assert "does not use Radeon RX 7900\n" in done.stderr
    assert "./packaging/install --vulkan" in done.stderr
    assert "docs/gpu.md" in done.stderr
    for other in ("/opt/vulkan/llama-server", own.replace("current", "current-vulkan")):
        done = machine.run("bash", "-c", f". {PACKAGING}/install; {code}", "-", machine.bin, other)
        assert done.returncode == 0
        assert "Radeon" not in done.stderr


def test_lingering_needs_root_where_nobody_else_is_asked(machine: Machine) -> None:
    assert machine.shell("install", "linger_command").strip() == "sudo loginctl enable-linger 1000"
    machine.fake("pkcheck", "exit 0")
    assert machine.shell("install", "linger_command").strip() == "loginctl enable-linger"


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
    mkdir -p "$CACHE/llama-server/0123" "$CACHE/build-venv"; : >"$CACHE/llama-server/0123/llama-server"; : >"$CACHE/.x"
    mkdir -p "$CONFIG.d" "$STATE" "$OLD_UNITS/accelerd.service.d" "$HOME/.cache/huggingface/hub/models--a--b"
    echo "# Written by accelctl add" >"$CONFIG.d/m.toml"; echo "[server]" >"$CONFIG.d/z.toml"
    : >"$STATE/state.json"; : >"$(dirname "$CONFIG")/keys"
    : >"$OLD_UNITS/accelerd.service.d/override.conf"; : >"$HOME/.cache/huggingface/hub/models--a--b/x"
    """
    machine.shell("install", setup)
    done = machine.run(PACKAGING / "uninstall", "--yes", *(["--purge"] if purge else []))
    assert done.returncode == 0, done.stderr
    assert ("the llama-server that was built" in done.stderr) is not purge
    left = {path for path in machine.snapshot() if not (machine.home / path).is_dir()}
    mine = {
        ".local/bin/accelctl",
        ".local/share/systemd/user/accelerd.socket",
        ".local/share/accelerd/models/mine.gguf",
        ".config/accelerd/keys",
        ".config/accelerd/accelerd.toml.d/z.toml",
        ".config/systemd/user/accelerd.service.d/override.conf",
        ".cache/huggingface/hub/models--a--b/x",
    }
    kept = {".config/accelerd/accelerd.toml", ".local/share/accelerd/models/hello.gguf"}
    kept |= {".cache/accelerd/llama-server/0123/llama-server", ".config/accelerd/accelerd.toml.d/m.toml"}
    kept.add(".local/state/accelerd/state.json")
    named = re.findall(r"kept: ~/(\S+) \(", done.stderr)
    assert all(any(path == at or path.startswith(f"{at}/") for at in named) for path in (mine if purge else mine | kept)
               if "bin/" not in path and path != ".local/share/systemd/user/accelerd.socket")  # fmt: skip
    assert left == (mine if purge else mine | kept)
    assert not (machine.home / ".local/share/accelerd/venv").exists()


# --- PyGObject, which is not on PyPI in a form that needs no compiler ---


def python(machine: Machine, name: str, *, gi: str = "", version: str = "3.11", base: str = "/usr") -> Path:
    """A Python of that version; `gi`: where its PyGObject lies. Its environments have nothing and see everything."""
    script = f"""
    case "$*" in
      *platlib*) echo "$(dirname "$0")/../lib" ;;
      *gi.__file__*) [ -n "{gi}" ] && echo "{gi}" || exit 1 ;;
      *"import Gio"*) [ -n "{gi}" ] && case $0 in */bin/python) [ -L "$(dirname "$0")/../lib/gi" ] ;; esac ;;
      *base_prefix*) echo "{base} {version.replace(".", " ")}" ;;
      *"version_info < (3, 11)"*) [ "{version}" != 3.10 ] ;;
      *" venv "*|"-m venv "*) shift 2; mkdir -p "$1/bin" "$1/lib"; cp "$0" "$1/bin/python" ;;
    esac"""
    machine.fake(name, script)
    return machine.bin / name


def missing(machine: Machine, **env: str) -> list[str]:
    done = machine.run("bash", "-c", f". {PACKAGING}/lib.sh; missing_packages python gi", **env)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_daemon_needs_the_distributions_pygobject(machine: Machine) -> None:
    machine.fake("apt-get", "exit 1")
    python(machine, "python3")
    assert missing(machine) == ["python3", "python3-venv", "python3-gi"]
    python(machine, "python3", gi="/usr/lib/python3/dist-packages/gi")
    assert missing(machine) == []


def test_no_package_is_asked_for_where_none_would_help(machine: Machine) -> None:
    machine.fake("apt-get", "exit 1")
    python(machine, "python3", base="/usr")
    other = python(machine, "other", base="/opt")
    assert missing(machine, ACCELERD_PYTHON=str(other)) == []
    (machine.bin / "sudo").unlink()
    assert missing(machine) == []  # nobody could install it: it is done without


def test_the_distributions_python_goes_first(machine: Machine) -> None:
    own = python(machine, "own", gi="/gi")
    found = machine.run("bash", "-c", f". {PACKAGING}/lib.sh; find_python", ACCELERD_SYSTEM_PYTHON=str(own))
    assert found.stdout.strip() == str(own)
    python(machine, "own", version="3.10")
    found = machine.run("bash", "-c", f". {PACKAGING}/lib.sh; find_python", ACCELERD_SYSTEM_PYTHON=str(own))
    assert found.stdout.strip() == str(machine.bin / "python3")


def test_an_environment_is_lent_pygobject_and_nothing_else(machine: Machine) -> None:
    gi = machine.home / "dist-packages/gi"
    gi.mkdir(parents=True)
    (gi.parent / "pip").mkdir()
    python(machine, "python3", gi=str(gi))
    machine.shell("lib.sh", 'make_venv "$1"; lend_gi "$1"', str(machine.home / "venv"))
    found = list((machine.home / "venv/lib").iterdir())
    assert [(path.name, path.readlink()) for path in found] == [("gi", gi)]


def test_an_environment_of_another_python_is_made_anew(machine: Machine) -> None:
    venv = machine.home / "venv"
    python(machine, "python3", base="/opt/python")
    machine.shell("lib.sh", 'make_venv "$1"; touch "$1/mark"; make_venv "$1"', str(venv))
    assert (venv / "mark").exists()
    python(machine, "python3", gi="/gi")
    machine.shell("lib.sh", 'make_venv "$1"', str(venv))
    assert not (venv / "mark").exists()


def test_without_pygobject_the_installer_goes_on_and_says_what_that_means(machine: Machine) -> None:
    python(machine, "python3")
    done = machine.run("bash", "-c", f'. {PACKAGING}/install; make_venv "$VENV"; require_gi; echo on')
    assert (done.returncode, done.stdout) == (0, "on\n")
    assert "Models will be child" in done.stderr
    assert "python3-gi" in done.stderr


# --- units ---

SYSTEMCTL = """
echo "$*" >>"{called}"
case "$*" in
  *list-units*) printf 'accelerd-%s.service loaded active running x\\n' qwen mine ;;
  *Transient*accelerd-qwen*) echo yes ;;
  *Transient*) echo no ;;
  *ActiveState*) echo inactive ;;
esac
"""


def test_every_unit_is_installed_and_removed_and_no_model_is_left(machine: Machine) -> None:
    machine.fake("systemctl", SYSTEMCTL.format(called=machine.called))
    shipped = {path.name for path in (PACKAGING.parent / "units/user").iterdir()}
    machine.shell("install", "install_units")
    units = machine.home / ".local/share/systemd/user"
    assert {path.name for path in units.iterdir()} == shipped
    reaper = (units / "accelerd-reaper@.service").read_text()
    assert f"ExecStart={machine.home}/.local/share/accelerd/venv/bin/accelerd --reap\n" in reaper
    runtime = machine.home / "accelerd"
    runtime.mkdir()
    (runtime / "yield.json").write_text("{}")
    done = machine.run(PACKAGING / "uninstall", XDG_RUNTIME_DIR=str(machine.home))
    assert done.returncode == 0, done.stderr
    assert not units.exists()
    assert not runtime.exists()
    called = machine.called.read_text().splitlines()
    assert "--user stop accelerd-qwen.service" in called  # what systemd was asked for by accelerd
    assert "--user stop accelerd-mine.service" not in called  # what somebody wrote
    ended = [line.split()[-1] for line in called if " disable -q --now " in line]
    assert ended == ["accelerd.socket", "accelerd.service"]  # or the next client would start it again


def test_lingering_is_mentioned_where_it_is_off(machine: Machine) -> None:
    for answer, told in (("no", True), ("yes", False)):
        machine.fake("loginctl", f"echo {answer}")
        done = machine.run("bash", "-c", f". {PACKAGING}/install; MANAGED=1; next_steps")
        assert ("loginctl enable-linger" in done.stderr) == told


# --- tests/run ---


@pytest.mark.parametrize(
    ("subuid", "command"),
    [
        ("ann:100000:65536\n", ""),
        ("1000:100000:65536\n", ""),
        (
            "bob:100000:65536\nanna:165536:65536\n",
            "usermod --add-subuids 231072-296607 --add-subgids 231072-296607 ann",
        ),
        ("", "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 ann"),
    ],
)
def test_further_ids_are_given_to_who_has_none(machine: Machine, subuid: str, command: str) -> None:
    machine.fake("id", '[ "$1" = -un ] && echo ann || echo 1000')
    file = machine.home / "subuid"
    file.write_text(subuid)
    assert machine.shell("../tests/run", 'further_ids_command "$1" "$1"', str(file)).strip() == command


OURS = {"accelctl", "./packaging/install", "./packaging/uninstall", "./tests/run"}
BARE = {"busctl", "journalctl", "loginctl", "python3", "systemctl"}


def test_the_readme_needs_nothing_that_a_bare_debian_lacks() -> None:
    """Its commands are what people copy first: neither curl nor gdbus is there before somebody installs it."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (PACKAGING.parent / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    documents = re.compile(r"<<'EOF'.*?^EOF$", re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in documents.sub("", block).splitlines() if line]
    assert len(lines) > 15
    assert {line.split()[0] for line in lines} <= OURS | BARE
