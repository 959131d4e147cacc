"""accelctl doctor: the lines about containers, which are there only where a model lives in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from accelerd.base.ports import Roots
from accelerd.cli.checks import containers, engine
from accelerd.cli.checks.base import Check, CheckContext
from accelerd.cli.commands.doctor import run_checks
from accelerd.cli.connect import DaemonClient
from accelerd.cli.programs import ProgramResult

from .conftest import Ctl
from .test_config import gguf

Answers = Callable[[Sequence[str]], ProgramResult]
ABSENT = ProgramResult(127, "", "no such program")
GOOD = {
    ("toolbox",): ProgramResult(0, "toolbox version 0.0.99.3\n", ""),
    ("podman", "--version"): ProgramResult(0, "podman version 4.3.1\n", ""),
    ("docker", "--version"): ProgramResult(0, "Docker version 24\n", ""),
    ("distrobox",): ProgramResult(0, "distrobox: 1.4\n", ""),
    ("podman", "unshare"): ProgramResult(0, "", ""),
    ("podman", "container", "inspect", "radv"): ProgramResult(0, "[]", ""),
    ("podman",): ProgramResult(125, "", "Error: no such container"),
    ("docker",): ProgramResult(1, "", "Error: No such container"),
}


class FakePrograms:
    """Answers by how a command line begins; the most words win."""

    def __init__(self, answers: dict[tuple[str, ...], ProgramResult]) -> None:
        self.answers = answers

    def run(self, argv: Sequence[str], timeout: float = 10.0) -> ProgramResult:
        known = [words for words in self.answers if tuple(argv[: len(words)]) == words]
        return self.answers[max(known, key=len)] if known else ABSENT


@pytest.fixture
def here(ctl: Ctl, short: Path) -> CheckContext:
    return CheckContext(Roots.from_env(ctl.env), ctl.env, DaemonClient(short / "s"), FakePrograms(dict(GOOD)), uid=1000)


def models(ctl: Ctl, folder: Path, **homes: str) -> None:
    """One model for each: its name and the rest of its table."""
    path = gguf(folder)
    ctl.configure("".join(f'[models.{name}]\npath = "{path}"\n{rest}\n' for name, rest in homes.items()))


TOOLBOX = 'home = "toolbox"\ncontainer = "radv"'


def all_lines(s: CheckContext) -> list[Check]:
    return [check for topic in (containers.programs, containers.rootless, containers.there) for check in topic(s)]


def test_nothing_is_said_where_nothing_lives_in_containers(here: CheckContext, ctl: Ctl, tmp_path: Path) -> None:
    models(ctl, tmp_path, plain="")
    assert all_lines(here) == []


def test_toolboxes_that_are_well(here: CheckContext, ctl: Ctl, tmp_path: Path) -> None:
    models(ctl, tmp_path, one=TOOLBOX, two=TOOLBOX)
    assert [(check.id, check.level, check.detail) for check in all_lines(here)] == [
        ("toolbox", "ok", "toolbox version 0.0.99.3, for 2 models"),
        ("rootless", "ok", "rootless podman works for this user"),
        ("containers", "ok", "1 container or image of models"),
    ]
    ids = {check.id for check in run_checks(here)}
    assert ids >= {"toolbox", "rootless", "containers", "linger"}


def test_programs_of_the_host_are_not_asked_for_models_in_containers(
    here: CheckContext, ctl: Ctl, tmp_path: Path
) -> None:
    ctl.configure(f'[engines.llama-server]\nbinary = "no-such"\n[models.one]\npath = "/only/inside.gguf"\n{TOOLBOX}\n')
    assert [*engine.programs(here), *engine.model_files(here)] == []


@pytest.mark.parametrize(
    ("missing", "home", "words"),
    [
        (("toolbox",), TOOLBOX, "toolbox is not installed"),
        (("podman",), TOOLBOX, "podman is not installed"),
        (("distrobox",), 'home = "distrobox"\ncontainer = "radv"', "distrobox is not installed"),
        (("podman", "docker"), 'home = "distrobox"\ncontainer = "radv"', "podman or docker is not installed"),
        (("docker",), 'home = "docker"\nimage = "i:1"', "docker is not installed"),
        (("podman", "docker"), 'home = "container"\ncontainer = "radv"', "podman or docker is not installed"),
    ],
)
def test_what_is_not_installed(
    here: CheckContext, ctl: Ctl, tmp_path: Path, missing: tuple[str, ...], home: str, words: str
) -> None:
    models(ctl, tmp_path, one=home)
    here.programs = FakePrograms({words: outcome for words, outcome in GOOD.items() if words[0] not in missing})
    bad = [check for check in all_lines(here) if check.level != "ok"]
    assert len(bad) == 1, bad
    assert words in bad[0].detail
    assert "(one)" in bad[0].detail
    assert bad[0].fix.startswith("sudo apt install ")


def test_either_engine_is_enough_for_a_distrobox(here: CheckContext, ctl: Ctl, tmp_path: Path) -> None:
    models(ctl, tmp_path, one='home = "distrobox"\ncontainer = "radv"')
    here.programs = FakePrograms({words: outcome for words, outcome in GOOD.items() if words[0] != "docker"})
    assert [check.level for check in all_lines(here)] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        ("Error: cannot find UID/GID for user me: no subuid ranges found for user", "sudo usermod --add-subuids"),
        ('ERRO: exec: "newuidmap": executable file not found', "sudo usermod --add-subuids"),
        ("Error: something else", "podman info"),
    ],
)
def test_podman_that_does_not_work(here: CheckContext, ctl: Ctl, tmp_path: Path, error: str, fix: str) -> None:
    models(ctl, tmp_path, one=TOOLBOX)
    here.programs = FakePrograms(GOOD | {("podman", "unshare"): ProgramResult(125, "", f"{error}\n")})
    [check] = containers.rootless(here)
    assert (check.level, check.fix.startswith(fix)) == ("fail", True)
    assert error.removeprefix("ERRO: ")[-20:] in check.detail
    here.uid = 0
    assert [*containers.rootless(here)] == [], "root's podman is not rootless"


def test_containers_and_images_that_are_not_there(here: CheckContext, ctl: Ctl, tmp_path: Path) -> None:
    models(
        ctl, tmp_path, one='home = "toolbox"\ncontainer = "gone"', two='home = "toolbox"\ncontainer = "gone"',
        three='home = "distrobox"\ncontainer = "gone"', four='home = "podman"\nimage = "i:1"',
    )  # fmt: skip
    found = [(check.level, check.detail, check.fix) for check in containers.there(here)]
    assert found == [
        ("fail", "the toolbox gone does not exist (one, two)", "toolbox create --image IMAGE --container gone"),
        ("fail", "the distrobox gone does not exist (three)", "distrobox create --image IMAGE --name gone"),
        ("warn", "four: the image i:1 has not been pulled yet, so its first load will take longer", "podman pull i:1"),
    ]
    here.programs = FakePrograms(GOOD | {("podman", "image", "inspect", "i:1"): ProgramResult(0, "[]", "")})
    assert [check.level for check in containers.there(here)] == ["fail", "fail", "ok"]


def test_an_existing_container_is_docker_s_or_podman_s(here: CheckContext, ctl: Ctl, tmp_path: Path) -> None:
    ctl.configure('[models.one]\nhome = "container"\ncontainer = "server"\nmemory = "1GiB"\n')
    [check] = containers.there(here)
    assert (check.level, check.fix) == ("fail", "podman ps --all")
    here.programs = FakePrograms(GOOD | {("docker", "container", "inspect", "server"): ProgramResult(0, "[]", "")})
    [check] = containers.there(here)
    assert check.level == "ok"
