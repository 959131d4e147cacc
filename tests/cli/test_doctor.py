"""accelctl doctor: each check on a machine that is well and on one that is not."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from accelerd import __version__
from accelerd.base.ports import Roots
from accelerd.cli.checks import engine, host, memory, service
from accelerd.cli.checks.base import Check, CheckContext
from accelerd.cli.commands.doctor import run_checks
from accelerd.cli.connect import DaemonClient
from accelerd.cli.programs import ProgramResult, SystemPrograms
from accelerd.devices.inventory import Inventory
from accelerd.devices.model import Device, MemoryPool
from accelerd.devices.troubles import MEMLOCK_FIX
from accelerd.devices.udev import PciFunction, UdevDevice

from .conftest import Ctl
from .fake_daemon import FakeDaemon, Reply, status
from .test_config import gguf

UNITS = Path(__file__).parents[2] / "units/user"
ACTIVE = "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\n"
MISSING = "LoadState=not-found\nUnitFileState=\nActiveState=inactive\n"


class FakePrograms:
    """Programs that print what the test says; all others are not there."""

    def __init__(self, **programs: ProgramResult) -> None:
        self.programs = programs
        self.asked: list[Sequence[str]] = []

    def run(self, argv: Sequence[str], timeout: float = 10.0) -> ProgramResult:
        self.asked.append(argv)
        return self.programs.get(argv[0], ProgramResult(127, "", "no such program"))


class NoDevices:
    def entries(self, subsystem: str) -> Iterable[UdevDevice]:
        return []


@pytest.fixture
def here(ctl: Ctl, short: Path, tmp_path: Path) -> CheckContext:
    """A machine of 32 GiB with a user manager that knows the units, without a daemon."""
    proc = tmp_path / "proc"
    (proc / "net").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 33554432 kB\nMemAvailable: 20971520 kB\n")
    roots = Roots.from_env(ctl.env)
    programs = FakePrograms(
        systemctl=ProgramResult(0, ACTIVE, ""),
        loginctl=ProgramResult(0, "yes\n", ""),
        journalctl=ProgramResult(0, "", ""),
    )
    return CheckContext(
        roots=Roots(roots.config_file, roots.runtime, roots.state, roots.cache, roots.home, proc, tmp_path / "sys"),
        env=ctl.env, client=DaemonClient(short / "s"), programs=programs, udev=NoDevices(),
        swap=lambda: (0, 0),
    )  # fmt: skip


def forget(here: CheckContext) -> None:
    """The next check looks at the configuration and the devices again."""
    for name in ("machine", "devices"):
        here.__dict__.pop(name, None)


def only(checks: Iterable[Check]) -> Check:
    [check] = checks
    return check


def levels(checks: Iterable[Check]) -> dict[str, str]:
    return {check.id: check.level for check in checks}


def program(folder: Path, text: str) -> Path:
    path = folder / "llama-server"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


LLAMA = (
    'case $1 in --version) echo "version: 7777 (abc)" >&2;; '
    '*) echo "-lm, --load-mode MODE   how to load"; echo "-m, --model FILE   the model";; esac'
)


def test_a_machine_that_is_well(here: CheckContext, ctl: Ctl, daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.path.chmod(0o600)
    server = program(tmp_path, LLAMA)
    ctl.configure(
        f'[engines.llama-server]\nbinary = "{server}"\n[models.tiny]\npath = "{gguf(tmp_path)}"\n'
    )  # fmt: skip
    checks = run_checks(here)
    assert [check for check in checks if check.level != "ok"] == []
    assert {check.id for check in checks} == {
        "python", "runtime-dir", "config-dir", "state-dir", "cache-dir", "config", "model-files", "llama-server",
        "memory", "swap", "devices", "daemon", "units", "socket-activation", "linger", "port", "control-socket",
        "journal",
    }  # fmt: skip


def test_every_finding_that_is_not_ok_says_what_to_do(here: CheckContext, ctl: Ctl, tmp_path: Path) -> None:
    ctl.configure('[engines.llama-server]\nbinary = "no-such-server"\n[models.a]\npath = "/nowhere/a.gguf"\n')
    here.programs = FakePrograms()
    here.python = (3, 9, 1)
    checks = run_checks(here)
    bad = [check for check in checks if check.level != "ok"]
    assert {check.id for check in bad} >= {
        "python",
        "config",
        "model-files",
        "llama-server",
        "daemon",
        "units",
        "journal",
    }
    assert all(check.fix for check in bad)


def test_python(here: CheckContext) -> None:
    assert only(host.python(here)).level == "ok"
    here.python = (3, 10, 12)
    assert only(host.python(here)).level == "fail"


def test_directories(here: CheckContext, tmp_path: Path) -> None:
    assert set(levels(host.directories(here)).values()) == {"ok"}
    here.roots.runtime.mkdir(mode=0o755)
    here.roots.state.parent.mkdir(parents=True)
    here.roots.state.write_text("a file")
    found = {check.id: check for check in host.directories(here)}
    assert found["runtime-dir"].level == "fail"
    assert found["runtime-dir"].fix == f"chmod 700 {here.roots.runtime}"
    assert "is not a directory" in found["state-dir"].detail


def test_no_login_session(here: CheckContext, tmp_path: Path) -> None:
    here.roots = Roots.from_env({"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "gone")})
    here.uid = 0
    check = next(iter(host.directories(here)))
    assert (check.level, check.fix) == ("fail", "loginctl enable-linger")


def test_without_polkit_an_ordinary_user_needs_sudo_to_linger(here: CheckContext) -> None:
    here.uid = 1000
    here.programs = FakePrograms(loginctl=ProgramResult(0, "no\n", ""))
    assert only(service.linger(here)).fix == "sudo loginctl enable-linger somebody"
    here.programs = FakePrograms(loginctl=ProgramResult(0, "no\n", ""), pkcheck=ProgramResult(0, "0.105", ""))
    assert only(service.linger(here)).fix == "loginctl enable-linger"


def test_configuration(here: CheckContext, ctl: Ctl, tmp_path: Path) -> None:
    assert only(engine.configuration(here)).fix == "accelctl add FILE, or accelctl add hf:ORG/REPO"
    for text, level, words in (
        ("[models.a]\n", "fail", "1 problem"),
        ('[models.a]\npath = "/nowhere/a.gguf"\n', "warn", "warning"),
        (f'[models.a]\npath = "{gguf(tmp_path)}"\n', "ok", "1 model in"),
    ):
        ctl.configure('[engines.llama-server]\nbinary = "/bin/true"\n' + text)
        forget(here)
        check = only(engine.configuration(here))
        assert check.level == level
        assert words in check.detail


def test_nothing_is_said_of_the_defaults_where_the_configuration_is_invalid(here: CheckContext, ctl: Ctl) -> None:
    ctl.configure("broken = [")
    found = {check.id for check in run_checks(here)}
    assert {"config", "daemon", "units"} <= found
    assert not {"llama-server", "memory", "port", "model-files"} & found


def test_model_files_each_missing_one_is_named(here: CheckContext, ctl: Ctl, tmp_path: Path) -> None:
    ctl.configure(
        f'[models.a]\npath = "/nowhere/a.gguf"\n[models.b]\npath = "{gguf(tmp_path)}"\n[models.c]\npath = "/c.gguf"\n'
    )
    first, second = engine.model_files(here)
    assert (first.level, second.level) == ("fail", "fail")
    assert first.detail.startswith("a: cannot find the model /nowhere/a.gguf")
    assert "accelerd.toml:2" in first.fix
    assert "accelctl remove" not in first.fix + second.fix, "remove refuses what accelctl did not write"


def test_a_file_that_ends_early_is_not_readable(here: CheckContext, ctl: Ctl, tmp_path: Path) -> None:
    whole = gguf(tmp_path)
    assert ctl("add", str(whole)).status == 0
    whole.write_bytes(whole.read_bytes()[:-5])
    check = only(engine.model_files(here))
    assert check.level == "fail"
    assert "tiny: " in check.detail
    assert "download" in check.detail
    assert check.fix.endswith("or: accelctl remove tiny")


def test_programs_of_the_configuration_and_of_models(here: CheckContext, ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    server, old = (
        program(tmp_path, LLAMA),
        program(tmp_path / "old", LLAMA.replace("-lm, --load-mode MODE", "--no-mmap")),
    )
    model = gguf(tmp_path)
    ctl.configure(
        f'[engines.llama-server]\nbinary = "{server}"\n[models.a]\npath = "{model}"\n'
        f'[models.b]\npath = "{model}"\nbinary = "{old}"\n[models.c]\npath = "{model}"\n'
    )
    checks = {check.detail.partition(",")[0]: check for check in engine.programs(here)}
    assert set(checks) == {str(server), str(old)}
    assert "7777 (abc)" in checks[str(server)].detail
    assert "7777 (abc)" in checks[str(old)].detail


def test_programs_that_do_not_work(here: CheckContext, ctl: Ctl, tmp_path: Path) -> None:
    broken = program(tmp_path, "echo libcuda.so.1: cannot open shared object file >&2; exit 127")
    ctl.configure(f'[engines.llama-server]\nbinary = "{broken}"\n')
    check = only(engine.programs(here))
    assert check.level == "fail"
    assert "libcuda.so.1" in check.detail
    assert check.fix


def test_the_real_llama_server(here: CheckContext, ctl: Ctl) -> None:
    ctl.configure(f'[engines.llama-server]\nbinary = "{os.environ["ACCELERD_TEST_LLAMA_SERVER"]}"\n')
    check = only(engine.programs(here))
    assert check.level == "ok", check.detail
    assert check.detail.endswith("for cpu")


def test_what_is_no_llama_server(here: CheckContext, ctl: Ctl) -> None:
    for other in ("/bin/echo", "/bin/false", "/bin/ls"):
        ctl.configure(f'[engines.llama-server]\nbinary = "{other}"\n')
        forget(here)
        assert only(engine.programs(here)).level == "fail", other


def test_a_build_for_the_processor_beside_an_idle_gpu(
    here: CheckContext, ctl: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Device("gpu", "Radeon RX 7900", "amdgpu", "0000:03:00.0", apu=False, pools=(MemoryPool("vram", 24 << 30),))
    monkeypatch.setattr(Inventory, "scan", lambda self: [card])
    build = 'case $1 in --version) echo "version: 7777 (abc)" >&2;; --list-devices) echo "Available devices:"; {};; '
    build += '*) echo "-m, --model FILE   the model"; echo "--list-devices   list the devices";; esac'
    text = '[engines.llama-server]\nbinary = "{}"\n[models.m]\nmodel = "o/r"\n{}'
    server = program(tmp_path, build.format('echo "  (none)"'))
    ctl.configure(text.format(server, ""))
    check = only(engine.programs(here))
    assert check.level == "warn"
    assert "built for the processor only, so Radeon RX 7900 is idle" in check.detail
    assert "packaging/install --vulkan builds one" in check.fix
    forget(here)
    ctl.configure(text.format(server, "gpu_layers = 0\n"))
    assert only(engine.programs(here)).level == "ok", "it is meant to run on the processor"
    forget(here)
    listed = 'echo "  Vulkan0: AMD Radeon RX 7900 (RADV NAVI31) (24560 MiB, 24000 MiB free)"'
    ctl.configure(text.format(program(tmp_path, build.format(listed)), ""))
    assert only(engine.programs(here)).detail.endswith("for radv")


def test_memory(here: CheckContext, ctl: Ctl) -> None:
    for sizes, level, words in (
        (("4GiB", "8GiB"), "ok", "2 models: 12.0 GiB"),
        (("20GiB", "20GiB"), "ok", "40.0 GiB, not all at once"),
        (("64GiB",), "warn", "not enough for m0 (64.0 GiB)"),
    ):
        ctl.configure("".join(f'[models.m{n}]\nmodel = "o/r"\nmemory = "{text}"\n' for n, text in enumerate(sizes)))
        forget(here)
        check = only(memory.memory(here))
        assert check.level == level
        assert words in check.detail
    assert "20.0 GiB of 32.0 GiB free, 3.2 GiB kept for other programs" in check.detail


def test_swap(here: CheckContext) -> None:
    for found, level, words in (
        ((0, 0), "ok", "no swap"),
        ((100 << 20, 8 << 30), "ok", "100 MiB of 8.0 GiB in use"),
        ((3 << 30, 8 << 30), "warn", "3.0 GiB of 8.0 GiB in use"),
    ):
        here.swap = lambda found=found: found  # type: ignore[misc]
        check = only(memory.swap(here))
        assert (check.level, words in check.detail) == (level, True)
    used, total = CheckContext(here.roots, here.env, here.client, here.programs).swap()
    assert 0 <= used <= total


def test_memory_unknown(here: CheckContext) -> None:
    (here.roots.proc / "meminfo").unlink()
    assert only(memory.memory(here)).level == "warn"


def test_devices(here: CheckContext) -> None:
    assert "models run on the processor" in only(host.devices(here)).detail

    class Unreachable:
        def entries(self, subsystem: str) -> Iterable[UdevDevice]:
            path = Path("/sys/devices/x/drm/renderD128")
            return [UdevDevice("drm", "renderD128", "/dev/dri/none", "amdgpu", path)] if subsystem == "drm" else []

    forget(here)
    here.udev = Unreachable()
    check = only(host.devices(here))
    assert (check.level, check.fix) == ("warn", "sudo udevadm trigger")
    assert "amdgpu" in check.detail


def test_every_trouble_of_a_device_is_a_line_with_its_fix(here: CheckContext) -> None:
    function = PciFunction("0000:c5:00.1", None, "1022", "17f0", 0x118000, Path("/sys/devices/x"))

    class Dark:
        def entries(self, subsystem: str) -> Iterable[UdevDevice]:
            return [UdevDevice("pci", function.slot, None, None, function.path, function)] if subsystem == "pci" else []

    here.udev = Dark()
    (here.roots.proc / "cmdline").write_text("quiet amd_iommu=off\n")
    check = only(host.devices(here))
    assert (check.id, check.level) == ("devices", "warn")
    assert "amd_iommu=off" in check.detail
    assert "iommu=pt" in check.fix
    (here.roots.proc / "cmdline").write_text("quiet\n")
    function = replace(function, driver="amdxdna")
    forget(here)
    (here.roots.proc / "self").mkdir()
    (here.roots.proc / "self/limits").write_text("Max locked memory   8388608   8388608   bytes\n")
    lines = [check for check in host.devices(here) if "memory lock limit" in check.detail]
    assert [(line.level, line.fix) for line in lines] == [("warn", MEMLOCK_FIX)]


def test_daemon_down_other_version_and_well(here: CheckContext, daemon: FakeDaemon) -> None:
    assert only(service.daemon(here)).level == "ok"
    daemon.answers["GET status"] = Reply(status(version="0.0.1"))
    here.__dict__.pop("status")
    check = only(service.daemon(here))
    assert check.level == "warn"
    assert f"0.0.1 is running, {__version__} is installed" in check.detail
    here.__dict__.pop("status")
    here.client = DaemonClient(Path("/nowhere"))
    assert only(service.daemon(here)).fix == "systemctl --user start accelerd"


def test_what_the_daemon_lacks_is_told(here: CheckContext, daemon: FakeDaemon) -> None:
    daemon.answers["GET status"] = Reply(status(degraded="no systemd user manager answers (package python3-gi)"))
    found = {check.id: check for check in service.daemon(here)}
    assert (found["daemon"].level, found["degraded"].level) == ("ok", "warn")
    assert "python3-gi" in found["degraded"].detail
    assert "packaging/install" in found["degraded"].fix


@pytest.mark.parametrize(
    ("state", "expected"), [("left", "ok"), ("raised", "ok"), ("unsuitable", "ok"), ("unable", "warn"), ("hot", "warn")]
)
def test_the_level_of_a_gpu_that_may_not_be_set(
    here: CheckContext, daemon: FakeDaemon, state: str, expected: str
) -> None:
    gpu = {"slot": "0000:c1:00.0", "name": "Radeon", "state": state, "reason": "because", "stuck": False}
    daemon.answers["GET status"] = Reply(status(performance=[gpu]))
    (found,) = service.level(here)
    assert (found.level, found.detail) == (expected, "Radeon: because")
    assert ("packaging/helper install" in found.fix) is (state == "unable")


def test_all_units_are_installed_together_by_hand(here: CheckContext) -> None:
    here.checkout_tool = lambda name: ""  # type: ignore[method-assign]  # as in an installed package
    words = service.install_command(here).split()
    assert {Path(word).name for word in words if "_units/user" in word} == {path.name for path in UNITS.iterdir()}


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (ProgramResult(0, ACTIVE, ""), {"units": "ok", "socket-activation": "ok"}),
        (ProgramResult(0, MISSING, ""), {"units": "warn"}),
        (ProgramResult(0, ACTIVE.replace("enabled", "disabled"), ""), {"units": "ok", "socket-activation": "warn"}),
        (ProgramResult(0, ACTIVE.replace("=active", "=failed"), ""), {"units": "ok", "socket-activation": "warn"}),
        (ProgramResult(0, ACTIVE.replace("=loaded", "=bad-setting"), ""), {"units": "fail"}),
        (ProgramResult(0, ACTIVE.replace("=loaded", "=masked"), ""), {"units": "fail"}),
        (ProgramResult(1, "", "Failed to connect to bus"), {"units": "warn"}),
        (ProgramResult(127, "", ""), {"units": "warn"}),
    ],
)
def test_units(here: CheckContext, outcome: ProgramResult, expected: dict[str, str]) -> None:
    here.programs = FakePrograms(systemctl=outcome)
    assert levels(service.units(here)) == expected


@pytest.mark.parametrize(
    ("states", "fix"),
    [
        ("masked inactive", "systemctl --user unmask accelerd.socket accelerd.service && "),
        ("loaded failed", "systemctl --user reset-failed accelerd.service accelerd.socket && "),
        ("loaded inactive", "systemctl --user start accelerd.socket"),
        ("loaded active", "systemctl --user start accelerd"),
        ("not-found inactive", "run accelerd in a terminal"),
    ],
)
def test_what_starts_a_daemon_that_does_not_run(here: CheckContext, states: str, fix: str) -> None:
    load, active = states.split()
    said = f"LoadState={load}\nUnitFileState=\nActiveState={active}\n"
    here.programs = FakePrograms(systemctl=ProgramResult(0, said, ""))
    (check,) = service.daemon(here)
    assert (check.level, check.fix.startswith(fix)) == ("fail", True), check.fix


def test_after_failed_starts_the_fix_is_what_systemd_accepts(here: CheckContext) -> None:
    here.programs = FakePrograms(systemctl=ProgramResult(0, ACTIVE.replace("=active", "=failed"), ""))
    (check,) = [one for one in service.units(here) if one.id == "socket-activation"]
    assert "reset-failed" in check.fix


def test_linger(here: CheckContext) -> None:
    for outcome, level in (
        (ProgramResult(0, "yes\n", ""), "ok"),
        (ProgramResult(0, "no\n", ""), "warn"),
        (ProgramResult(1, "", "no user"), "warn"),
    ):
        here.programs = FakePrograms(loginctl=outcome)
        assert only(service.linger(here)).level == level
    here.programs = FakePrograms()
    assert "loginctl is not installed" in only(service.linger(here)).detail


def listen(here: CheckContext, *ports: int) -> None:
    """Somebody listens on these ports; one connection is established, which is no listening."""
    rest = "00000000:00000000 00:00000000 00000000 1000 0"
    rows = [f"   {n}: 0100007F:{port:04X} 00000000:0000 0A {rest} {n}" for n, port in enumerate(ports)]
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    text = head + "\n".join([*rows, f"   9: 0100007F:0FA0 0100007F:D431 01 {rest} 9"]) + "\n"
    (here.roots.proc / "net/tcp").write_text(text)


def test_ports_free_taken_and_ours(here: CheckContext, daemon: FakeDaemon, ctl: Ctl) -> None:
    elsewhere = DaemonClient(Path("/nowhere"))
    here.client, running = elsewhere, here.client
    here.programs = FakePrograms()
    listen(here)
    assert levels(service.ports(here)) == {"port": "ok"}
    listen(here, 4000)
    taken = list(service.ports(here))
    assert [(check.level, check.detail) for check in taken] == [
        ("fail", "127.0.0.1:4000 is in use by a program of another user"),
        ("ok", "[::1]:4000 is free"),
    ]
    assert "ss -ltnp 'sport = :4000'" in taken[0].fix
    here.programs = FakePrograms(systemctl=ProgramResult(0, ACTIVE, ""))
    assert [check.detail for check in service.ports(here)] == [
        "127.0.0.1:4000 is held for accelerd by systemd",
        "[::1]:4000 is free",
    ]
    here.__dict__.pop("status")
    here.client = running
    assert {check.detail.partition(" is ")[2] for check in service.ports(here)} == {"served by accelerd"}


def test_ports_that_systemd_does_not_hold_until_a_restart(here: CheckContext) -> None:
    class Stopped(FakePrograms):
        def run(self, argv: Sequence[str], timeout: float = 10.0) -> ProgramResult:
            state = "inactive" if argv[-1] == "accelerd-http.socket" else "active"
            return ProgramResult(0, ACTIVE.replace("ActiveState=active", f"ActiveState={state}"), "")

    here.programs = Stopped()
    found = {check.id: check for check in service.units(here)}
    assert found["units"].level == "ok"
    assert found["socket-activation"].level == "warn"
    assert "accelerd-http.socket is inactive: until a restart" in found["socket-activation"].detail


def test_a_daemon_that_listens_elsewhere_than_configured(here: CheckContext) -> None:
    here.__dict__["status"] = {"listen": ["127.0.0.1:4001", "127.0.0.1:4000"]}
    here.roots.config_file.parent.mkdir(parents=True, exist_ok=True)
    here.roots.config_file.write_text('[server]\nlisten = ["127.0.0.1:4000", "[::1]:4000", "127.0.0.1:4002"]\n')
    lacking = {"address": "[::1]:4000", "problem": "cannot listen on [::1]:4000: nginx (pid 7) uses the port"}
    here.__dict__["status"]["listeners"] = [lacking, {"address": "127.0.0.1:4000", "problem": None}]
    assert [(check.level, check.detail, check.fix) for check in service.ports(here)] == [
        ("ok", "127.0.0.1:4000 is served by accelerd", ""),
        ("fail", f"{lacking['problem']}; accelerd tries again", "ss -ltnp 'sport = :4000'"),
        ("fail", "127.0.0.1:4002 is configured, but accelerd does not listen there", "accelctl reload"),
        ("warn", "accelerd listens on 127.0.0.1:4001, which server.listen does not name", "accelctl reload"),
    ]


def test_control_socket(here: CheckContext, short: Path) -> None:
    path = short / "s"
    assert list(service.control_socket(here)) == []
    path.touch()
    assert "is not a socket" in only(service.control_socket(here)).detail
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    path.chmod(0o666)
    check = only(service.control_socket(here))
    assert (check.level, check.fix) == ("warn", f"chmod 600 {path}")
    path.chmod(0o600)
    assert only(service.control_socket(here)).level == "ok"
    here.uid += 1
    assert "belongs to user" in only(service.control_socket(here)).detail
    assert stat.S_ISSOCK(path.stat().st_mode)


def test_journal(here: CheckContext) -> None:
    assert only(service.journal(here)).level == "ok"
    here.programs = FakePrograms(journalctl=ProgramResult(1, "", "Hint: …\nNo journal files were opened.\n"))
    check = only(service.journal(here))
    assert check.level == "warn"
    assert "No journal files were opened." in check.detail


def test_report_as_text_and_json(ctl: Ctl) -> None:
    text = ctl("doctor")
    assert text.status == 1
    assert "fail  daemon" in text.out
    assert "→ systemctl --user start accelerd\n" in text.out
    assert "1 failure" in text.out or "failures" in text.out
    value = json.loads(ctl("doctor", "--json").out)
    assert value["ok"] is False
    daemon = next(check for check in value["checks"] if check["id"] == "daemon")
    assert set(daemon) == {"id", "level", "detail", "fix"}
    assert daemon["level"] == "fail"


def test_devices_option(ctl: Ctl) -> None:
    text = ctl("doctor", "--devices")
    assert text.status == 0
    assert "cpu" in text.out
    value = json.loads(ctl("doctor", "--devices", "--json").out)
    assert value["devices"][-1]["kind"] == "cpu"
    assert set(value["libraries"]) == {"nvml", "amdsmi"}


def test_the_real_machine_runs_programs() -> None:
    machine = SystemPrograms({"PATH": "/usr/bin:/bin"})
    assert machine.run(["sh", "-c", "echo out; echo err >&2; exit 3"]) == ProgramResult(3, "out\n", "err\n")
    assert machine.run(["/nowhere/program"]).status == 127
    assert machine.run(["sleep", "10"], timeout=0.05).status == 124
