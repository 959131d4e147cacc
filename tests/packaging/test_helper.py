"""packaging/helper and the files that it puts into the system."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from accelerd.base import names
from tests.packaging.test_scripts import Machine

__all__ = ["machine"]
ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "packaging"
UNITS = ROOT / "units/system"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.fake("getent", "exit 2")
    made.fake("install", f'echo "install $*" >>{made.called}')
    return made


def helper(*arguments: str | Path) -> str:
    done = subprocess.run(
        [PACKAGING / "helper", *arguments], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    return done.stdout


def test_the_installed_helper_runs_alone(tmp_path: Path) -> None:
    """With nothing of accelerd but what was installed, as its unit starts it."""
    helper("install", "--root", tmp_path)
    lib = tmp_path / "usr/local/lib/accelerd-helper"
    started = (UNITS / "accelerd-helper.service").read_text()
    assert "ExecStart=/usr/bin/python3 -I /usr/local/lib/accelerd-helper\n" in started
    runtime, sysfs = tmp_path / "run", tmp_path / "sys"
    runtime.mkdir()
    done = subprocess.run(
        [sys.executable, "-I", lib, "--repair", "--runtime", runtime, "--sysfs", sysfs],
        capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"}, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    code = f"import sys; sys.path.insert(0, {str(lib)!r}); import accelerd.helper.service; print(accelerd.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.startswith(str(lib))


def test_what_is_installed_is_shown_and_removed(tmp_path: Path) -> None:
    for options in ([], ["--udev"], ["--boot"]):
        helper("install", "--root", tmp_path, *options)
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    shown = [Path(line) for line in helper("show", "--root", tmp_path).splitlines()]
    assert all(any(file.is_relative_to(path) for path in shown) for file in files)
    helper("remove", "--root", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_without_a_terminal_and_without_yes_nothing_is_done_and_everything_is_named(machine: Machine) -> None:
    done = machine.run("bash", "-c", f". {PACKAGING}/helper; has_system_gi() {{ true; }}; main install")
    assert done.returncode == 1
    assert "cannot ask for permission" in done.stderr
    for command in ("sudo groupadd --system accelerd", "sudo usermod -aG accelerd", "sudo install -D -o root -g root"):
        assert command in done.stderr
    assert not machine.called.exists()


def test_yes_runs_what_would_have_been_asked_about(machine: Machine) -> None:
    code = ". $0/helper; has_system_gi() { true; }; main install --yes; install_commands | sed 's/^/plan /'"
    done = machine.run("bash", "-c", code, PACKAGING)
    assert done.returncode == 0, done.stderr
    planned = [line.removeprefix("plan ").replace("'", "") for line in done.stdout.splitlines()]
    assert len(planned) > 12
    assert machine.called.read_text().splitlines() == planned


def test_all_files_agree_on_the_names() -> None:
    service = configparser.ConfigParser()
    service.read(PACKAGING / "dbus/org.accelerd1.Helper.service")
    section = service["D-BUS Service"]
    assert section["Name"] == names.HELPER_NAME
    assert section["SystemdService"] == "accelerd-helper.service"
    unit = (UNITS / "accelerd-helper.service").read_text()
    assert f"BusName={names.HELPER_NAME}\n" in unit
    assert f"ExecStart={section['Exec']}\n" in unit
    assert f"RuntimeDirectory={Path(names.HELPER_RUNTIME).name}\n" in unit
    policy = ElementTree.parse(PACKAGING / "dbus/org.accelerd1.Helper.conf")
    assert {allow.get("own") for allow in policy.iter("allow")} == {names.HELPER_NAME, None}
    actions = ElementTree.parse(PACKAGING / "polkit/org.accelerd1.helper.policy")
    (action,) = actions.iter("action")
    assert action.get("id") == names.HELPER_ACTION
    defaults = {child.tag: child.text for child in action.iterfind("defaults/*")}
    assert defaults == {"allow_any": "no", "allow_inactive": "no", "allow_active": "yes"}
    assert f'action.id == "{names.HELPER_ACTION}"' in (PACKAGING / "polkit/60-accelerd.rules").read_text()


def test_every_module_that_the_helper_imports_is_installed(tmp_path: Path) -> None:
    subprocess.run([PACKAGING / "helper", "install", "--root", tmp_path], check=True, capture_output=True)
    installed = tmp_path / "usr/local/lib/accelerd-helper/accelerd"
    for path in [*(ROOT / "accelerd/helper").glob("*.py"), ROOT / "accelerd/base/names.py"]:
        assert (installed / path.relative_to(ROOT / "accelerd")).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("unit", ["accelerd-helper.service", "amdgpu-perf-high.service"])
def test_systemd_reads_the_units_without_a_complaint(tmp_path: Path, unit: str) -> None:
    text = (UNITS / unit).read_text().replace("/usr/local/lib/accelerd-helper", str(tmp_path))
    (tmp_path / unit).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", tmp_path / unit],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if unit in line]
    assert not said


def test_the_boot_service_raises_what_is_part_of_the_processor_and_nothing_else(tmp_path: Path) -> None:
    for slot, label in (("0000:c1:00.0", "vddnb"), ("0000:03:00.0", "vddgfx")):
        hwmon = tmp_path / slot / "hwmon/hwmon1"
        hwmon.mkdir(parents=True)
        (hwmon / "in1_label").write_text(f"{label}\n")
        (tmp_path / slot / "power_dpm_force_performance_level").write_text("auto\n")

    def levels() -> list[str]:
        return [path.read_text().strip() for path in sorted(tmp_path.glob("*/power_dpm_*"))]

    unit = (UNITS / "amdgpu-perf-high.service").read_text().replace("\\\n", "")
    for key, expected in (("ExecStart", ["auto", "high"]), ("ExecStop", ["auto", "auto"])):
        found = re.search(rf"^{key}=/bin/sh -c '(.*)'$", unit, re.MULTILINE)
        assert found is not None
        script = found[1].replace("$$", "$").replace("%%", "%").replace("/sys/bus/pci/drivers/amdgpu", str(tmp_path))
        subprocess.run(["/bin/sh", "-c", script], check=True)
        assert levels() == expected
