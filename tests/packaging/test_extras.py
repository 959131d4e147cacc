"""What packaging/install puts beside the programs: completions, manual pages, the files of the session bus."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.test_scripts import PACKAGING, Machine

ROOT = PACKAGING.parent
DATA = ".local/share"
PLACES = {
    f"{DATA}/bash-completion/completions/accelctl": "contrib/completions/accelctl.bash",
    f"{DATA}/zsh/site-functions/_accelctl": "contrib/completions/_accelctl",
    f"{DATA}/fish/vendor_completions.d/accelctl.fish": "contrib/completions/accelctl.fish",
    f"{DATA}/man/man1/accelctl.1": "docs/man/accelctl.1",
    f"{DATA}/man/man8/accelerd.8": "docs/man/accelerd.8",
    f"{DATA}/man/man5/accelerd.toml.5": "docs/man/accelerd.toml.5",
}
SERVICE = f"{DATA}/dbus-1/services/org.accelerd1.service"
INTERFACES = {
    f"{DATA}/dbus-1/interfaces/{path.name}": str(path.relative_to(ROOT))
    for path in (ROOT / "accelerd/bus/interfaces").glob("*.xml")
}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def files(machine: Machine) -> set[str]:
    return {path for path in machine.snapshot() if not (machine.home / path).is_dir()}


def test_every_file_has_its_place_and_uninstall_takes_all_away(machine: Machine) -> None:
    machine.shell("install", "install_extras")
    assert files(machine) == {*PLACES, *INTERFACES, SERVICE}
    for place, source in (PLACES | INTERFACES).items():
        assert (machine.home / place).read_text() == (ROOT / source).read_text(), place
    done = machine.run(PACKAGING / "uninstall")
    assert done.returncode == 0, done.stderr
    assert machine.snapshot() == []


def test_every_interface_is_installed() -> None:
    assert {Path(place).name for place in INTERFACES} == {
        f"org.accelerd1.{name}.xml" for name in ("Manager", "Device", "Model", "Job")
    }


def test_the_bus_is_told_of_the_program_that_was_installed(machine: Machine) -> None:
    machine.shell("install", 'set_prefix "$HOME/else&where#"; install_extras')
    text = (machine.home / SERVICE).read_text()
    assert f"\nExec={machine.home}/else&where#/share/accelerd/venv/bin/accelerd\n" in text
    assert "\nName=org.accelerd1\n" in text
    assert "\nSystemdService=accelerd.service\n" in text


def test_a_second_run_changes_nothing_and_a_new_version_replaces(machine: Machine) -> None:
    assert "completions" in machine.run("bash", "-c", f". {PACKAGING}/install; install_extras").stderr
    assert machine.run("bash", "-c", f". {PACKAGING}/install; install_extras").stderr == ""
    page = machine.home / f"{DATA}/man/man1/accelctl.1"
    page.write_text(page.read_text() + "older\n")
    machine.shell("install", "install_extras")
    assert "older" not in page.read_text()


def test_a_file_of_somebody_else_stays(machine: Machine) -> None:
    theirs = machine.home / f"{DATA}/zsh/site-functions/_accelctl"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("#compdef accelctl\n# my own\n")
    done = machine.run("bash", "-c", f". {PACKAGING}/install; install_extras")
    assert done.returncode == 0
    assert "was not written by this installer and is left unchanged" in done.stderr
    assert machine.run(PACKAGING / "uninstall").returncode == 0
    assert files(machine) == {str(theirs.relative_to(machine.home))}
    assert "my own" in theirs.read_text()


def test_nothing_can_be_started_by_the_bus_while_it_is_taken_away(machine: Machine) -> None:
    """The activation file goes before the service is stopped: a panel that calls would bring it back."""
    machine.shell("install", "install_units; install_extras")
    service = machine.home / SERVICE
    machine.fake("systemctl", f'[ -e {service} ] && echo "with: $*" >>{machine.called}; exit 0')
    machine.fake("busctl", f'[ -e {service} ] || echo "told" >>{machine.called}')
    done = machine.run(PACKAGING / "uninstall", XDG_RUNTIME_DIR=str(machine.home))
    assert done.returncode == 0, done.stderr
    assert machine.called.read_text() == "told\n"


def test_an_interface_of_an_earlier_version_goes_too(machine: Machine) -> None:
    machine.shell("install", "install_extras")
    old = machine.home / f"{DATA}/dbus-1/interfaces/org.accelerd1.Old.xml"
    old.parent.mkdir(parents=True, exist_ok=True)
    old.write_text("<node/>\n")
    other = old.with_name("org.example.Other.xml")
    other.write_text("<node/>\n")
    assert machine.run(PACKAGING / "uninstall").returncode == 0
    assert files(machine) == {str(other.relative_to(machine.home))}
