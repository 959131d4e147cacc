"""The frame of accelctl: finding commands, usage errors, exit statuses, start-up."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from accelerd import __version__
from accelerd.cli import COMMANDS, HABITS, OTHERS, split

from .conftest import Ctl
from .fake_daemon import FakeDaemon, delta, sse


def test_help_names_every_command_and_exit_status(ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl("--help").status == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n  {name} " in text
    for number in ("0", "1", "2", "3", "4", "5", "130"):
        assert f"  {number}  " in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(ctl: Ctl, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert ctl(name, "--help").status == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: accelctl {name}")
    assert "--json" in text
    assert "--socket" in text


def test_without_a_command_the_help_is_shown(ctl: Ctl) -> None:
    result = ctl()
    assert result.status == 0
    assert "commands:" in result.out


def test_unknown_command_names_the_nearest(ctl: Ctl) -> None:
    result = ctl("statsu")
    assert result.status == 2
    assert result.err == "accelctl: there is no command statsu; did you mean status?\n"


@pytest.mark.parametrize(("typed", "meant"), HABITS.items())
def test_what_other_programs_call_a_command_works(
    ctl: Ctl, capsys: pytest.CaptureFixture[str], typed: str, meant: str
) -> None:
    assert ctl(typed, "--help").status == 0
    assert capsys.readouterr().out.startswith(f"usage: accelctl {meant} ")


def test_habits_do_what_they_say(ctl: Ctl, daemon: FakeDaemon) -> None:
    assert ctl("ls").out == ctl("list").out == ctl("models").out
    assert ctl("ps").out == ctl("status").out
    assert ctl("stop", "nothing").err == ctl("unload", "nothing").err


@pytest.mark.parametrize("typed", OTHERS)
def test_commands_of_other_programs_that_are_none_say_what_to_do(ctl: Ctl, typed: str) -> None:
    result = ctl(typed, "x")
    assert result.status == 2
    assert f"there is no command {typed}; {OTHERS[typed]}" in result.err


def test_help_of_a_command(ctl: Ctl) -> None:
    assert "--max-tokens" in ctl("help", "run").out
    assert "commands:" in ctl("help").out
    assert ctl("help", "nonsense").status == 2


@pytest.mark.parametrize(
    "argv",
    [
        ["chat", "embed", "--max-tokens", "5", "say", "hi"],
        ["chat", "--max-tokens", "5", "embed", "say", "hi"],
        ["chat", "embed", "say", "--max-tokens=5", "hi"],
        ["--max-tokens", "5", "chat", "embed", "say", "hi"],
    ],
    ids=" ".join,
)
def test_options_stand_anywhere_on_the_line(ctl: Ctl, daemon: FakeDaemon, argv: list[str]) -> None:
    daemon.answers["POST /v1/chat/completions"] = sse(delta("ok"), delta(finish_reason="stop"))
    assert ctl(*argv).out == "ok\n"
    asked = json.loads(daemon.requests[-1].body)
    assert (asked["max_tokens"], asked["messages"][0]["content"]) == (5, "say hi")


def test_what_follows_two_dashes_is_no_option(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST /v1/chat/completions"] = sse(delta("ok"), delta(finish_reason="stop"))
    assert ctl("chat", "embed", "--", "--json", "is", "what?").out == "ok\n"
    assert json.loads(daemon.requests[-1].body)["messages"][0]["content"] == "--json is what?"


def test_usage_errors_are_one_line(ctl: Ctl) -> None:
    for argv in (("load",), ("reset", "a", "b"), ("logs", "-n", "x", "m"), ("--bogus", "status"), ("config", "frob")):
        result = ctl(*argv)
        assert result.status == 2, argv
        assert result.err.count("\n") == 1
        assert result.err.startswith("accelctl: ")
        assert "--help" in result.err


@pytest.mark.parametrize(
    ("typed", "words"),
    [("update", "./packaging/install"), ("upgrade", "./packaging/install"), ("delte", "did you mean delete?"),
     ("inquire", "see: accelctl --help"), ("statsu", "did you mean status?")],
)  # fmt: skip
def test_a_command_that_is_none_leads_to_what_was_meant(ctl: Ctl, typed: str, words: str) -> None:
    result = ctl(typed)
    assert result.status == 2
    assert words in result.err
    assert typed == "delte" or "delete" not in result.err


def test_usage_error_as_json(ctl: Ctl) -> None:
    result = ctl("load", "--json")
    assert result.status == 2
    assert json.loads(result.out)["error"]["code"] == "usage"
    assert result.err == ""


@pytest.mark.parametrize("place", ["before", "after"])
def test_shared_options_stand_before_or_after_the_command(ctl: Ctl, daemon: FakeDaemon, place: str) -> None:
    options = ["--json", "--socket", str(daemon.path)]
    argv = [*options, "status"] if place == "before" else ["status", *options]
    result = ctl(*argv, ACCELERD_SOCKET="/nowhere")
    assert result.status == 0
    assert json.loads(result.out)["pid"] == 4711


@pytest.mark.parametrize(
    "argv", [["toolbox", "--json", "list"], ["memory", "learned", "--json"], ["--json", "config", "show"]]
)
def test_shared_options_stand_anywhere(ctl: Ctl, argv: list[str]) -> None:
    assert json.loads(ctl(*argv).out)


def test_a_socket_called_like_a_command_is_no_command() -> None:
    shared, words = split(["--socket", "status", "models", "--", "--json"])
    assert (shared.socket, shared.json, words) == ("status", False, ["models", "--", "--json"])


def test_version_option(ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl("--version").status == 0
    assert capsys.readouterr().out == f"accelctl {__version__}\n"


def test_status_imports_nothing_heavy(ctl: Ctl, daemon: FakeDaemon) -> None:
    """Start-up time is a promise: what costs it is not imported."""
    program = (
        "import sys; from accelerd.cli import main; code = main(['status']);"
        "heavy = {'aiohttp', 'argcomplete', 'asyncio', 'numpy', 'rich', 'msgspec', 'pyudev', 'subprocess',"
        " 'accelerd.config.load'};"
        "sys.exit(','.join(heavy & set(sys.modules)) or code)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ctl.env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "gemma-3-4b-it" in done.stdout


def test_a_reader_that_leaves_is_no_error(ctl: Ctl, daemon: FakeDaemon) -> None:
    program = "import sys; from accelerd.cli import main; sys.exit(main(['status']))"
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=ctl.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.close()
    with process:
        assert process.stderr
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize(("where", "status"), [("/dev/full", 1), ("&-", 0)])
def test_an_output_that_takes_nothing_is_no_mistake_of_accelctl(where: str, status: int) -> None:
    run = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" >{where}', sys.executable,
         "from accelerd.cli import main; raise SystemExit(main(['version']))"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == status, run.stderr
    assert "Traceback" not in run.stderr
    assert ("No space left" in run.stderr) == (status == 1)
