"""accelctl doctor: each check on a machine that is well and on one that is not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from msgspec.structs import replace

from accelerd.base.ports import Roots
from accelerd.cli.checks import engine, host, memory, service
from accelerd.cli.checks.base import CheckContext
from accelerd.cli.commands.doctor import run_checks
from accelerd.cli.programs import ProgramResult, SystemPrograms
from accelerd.devices.inventory import Inventory
from accelerd.devices.model import Device, MemoryPool
from accelerd.devices.troubles import MEMLOCK_FIX
from accelerd.devices.udev import PciFunction, UdevDevice

from .conftest import Ctl
from .doctor_kit import FakePrograms, forget, levels, machine, only, program
from .fake_daemon import FakeDaemon, Reply, error
from .test_config import gguf


@pytest.fixture
def here(ctl: Ctl, short: Path, tmp_path: Path) -> CheckContext:
    return machine(ctl, short, tmp_path)


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


def test_a_file_of_another_program_may_be_of_any_kind(here: CheckContext, ctl: Ctl, tmp_path: Path) -> None:
    file = tmp_path / "ggml-tiny.bin"
    file.write_bytes(b"lmgg" + bytes(100))
    ctl.configure(
        f'[models.hear]\nengine = "command"\npath = "{file}"\n[models.hear.command]\npreset = "whisper.cpp"\n'
    )
    assert list(engine.model_files(here)) == []


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


def test_the_llama_server_is_that_of_the_daemon(here: CheckContext, ctl: Ctl, daemon: FakeDaemon) -> None:
    """What this shell would find, or its variables show, is not what runs."""
    ctl.configure('[engines.llama-server]\nbinary = "only-the-service-has-it"\n')
    assert only(engine.programs(here)).level == "fail"
    build = {"engine": "llama-server", "program": "/opt/vk/llama-server", "version": "7", "backend": "radv"}
    daemon.answers["GET build"] = Reply({**build, "options": ["--model"]})
    check = only(engine.programs(here))
    assert (check.level, check.detail) == ("ok", "/opt/vk/llama-server, 7, for radv")
    daemon.answers["GET build"] = error(503, "model_failed", "cannot find the program no-such-server")
    assert only(engine.programs(here)).detail == "cannot find the program no-such-server"


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
