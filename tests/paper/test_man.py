"""The manual pages: complete, and read without a complaint by both programs that show them."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from accelerd.__main__ import command_line
from accelerd.cli import COMMANDS, command_parser, overview
from accelerd.config.reference import tables
from accelerd.paper.roff import escape

MAN = Path(__file__).parents[2] / "docs" / "man"
PAGES = sorted(path.name for path in MAN.iterdir())


def run(*argv: str | Path) -> str:
    """What it prints, complaints included."""
    if not shutil.which(str(argv[0])):
        pytest.fail(f"no {argv[0]}: run tests/run, or install it", pytrace=False)
    command = [str(a) for a in argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def shown(page: str) -> str:
    """The page as people see it, with every run of spaces and line ends as one space."""
    return " ".join(run("mandoc", "-Tutf8", "-Owidth=900", MAN / page).replace("_\b", "").split())


def plain(text: str) -> str:
    """Without overstrikes."""
    return "".join(c for i, c in enumerate(text) if c != "\b" and text[i + 1 : i + 2] != "\b")


def test_there_is_a_page_for_each_program_and_the_file() -> None:
    assert PAGES == ["accelctl.1", "accelerd.8", "accelerd.toml.5"]


@pytest.mark.parametrize("page", PAGES)
def test_mandoc_has_no_complaint(page: str) -> None:
    assert run("mandoc", "-Tlint", "-Wwarning", MAN / page) == ""


@pytest.mark.parametrize("page", PAGES)
def test_groff_has_no_complaint(page: str) -> None:
    assert run("groff", "-man", "-Tutf8", "-ww", "-Wbreak", "-z", MAN / page) == ""


@pytest.mark.parametrize("page", PAGES)
def test_no_page_tells_of_a_machine_or_a_person(page: str) -> None:
    text = (MAN / page).read_text()
    assert "/home/" not in text
    assert "/root/" not in text
    assert text.isascii()


def parsers() -> Iterator[argparse.ArgumentParser]:
    """accelctl's own, and that of each command and of each command of one."""
    yield overview()
    for name in COMMANDS:
        parser = command_parser(name)[1]
        yield parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from action.choices.values()


def test_every_command_and_option_of_accelctl_has_its_place() -> None:
    page = plain(shown("accelctl.1"))
    assert len([*parsers()]) > len(COMMANDS) + 6
    for parser in parsers():
        assert parser.prog in page
        for action in parser._actions:
            for name in action.option_strings[-1:]:
                assert name in page, (parser.prog, name)


def test_every_option_of_accelerd_has_its_place() -> None:
    page = plain(shown("accelerd.8"))
    names = [name for action in command_line()._actions for name in action.option_strings]
    assert len(names) >= 4
    assert [name for name in names if name not in page] == []


def test_every_key_of_the_configuration_has_its_place() -> None:
    page = plain(shown("accelerd.toml.5"))
    for title, rows in tables():
        assert title in page
        for key, _, _, meaning in rows:
            assert key in page
            assert " ".join(meaning.split()).replace("`", "")[:60] in page, key


@pytest.mark.parametrize("text", [".so /etc/passwd", "'br", "a\\fBb", "x\n.ps 99"])
def test_text_is_never_taken_for_a_request(text: str) -> None:
    made = escape(text)
    assert "'" not in made
    assert "\\f" not in made.replace("\\e", "")
