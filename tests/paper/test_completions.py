"""accelctl is completed by real shells: commands, options, values, and the names of models and toolboxes."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from accelerd.cli import COMMANDS, command_parser, overview
from accelerd.cli.completion import set_completers
from accelerd.paper.__main__ import files
from tests.cli.fake_daemon import FakeDaemon, Reply, model, status

from .complete import SHELLS

ROOT = Path(__file__).parents[2]
MODELS = ["qwen", "org/repo:Q4", "org/repo:Q8"]
CONFIG = """
[models.qwen]
path = "/m.gguf"
aliases = ["org/repo:Q4", "org/repo:Q8"]
home = "toolbox"
container = "box-a"
"""
FREE = {"HH:MM", "N", "NAME", "PROMPT", "SIZE", "SLOT", "SOURCE", "T", "TEXT", "TIME"}  # values that nobody can guess
CASES = [
    ("accelctl lo", {"load", "logs"}),
    ("accelctl --json lo", {"load", "logs"}),
    ("accelctl --socket /some/where lo", {"load", "logs"}),
    ("accelctl load ", set(MODELS)),
    ("accelctl explain qw", {"qwen"}),
    ("accelctl status q", {"qwen"}),
    ("accelctl remove q", {"qwen"}),
    ("accelctl logs -n 20 q", {"qwen"}),
    ("accelctl unload --force q", {"qwen"}),
    ("accelctl load qwen ", set(MODELS)),  # takes several
    ("accelctl reset qwen ", set()),
    ("accelctl unload --f", {"--force"}),
    ("accelctl toolbox re", {"refresh"}),
    ("accelctl toolbox pin ", {"box-a", "box-b"}),
    ("accelctl toolbox refresh --f", {"--force"}),
    ("accelctl memory forget q", {"qwen"}),
    ("accelctl config s", {"show", "schema"}),
    ("accelctl fit --kv q4", {"q4_0", "q4_1"}),
    ("accelctl yield --for ", set()),
]


def program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A home with a configuration, accelctl and a podman with one toolbox; no daemon runs, nobody's own settings."""
    code = "import sys; from accelerd.cli import main; sys.exit(main())"
    program(tmp_path / "bin/accelctl", f"PYTHONPATH='{ROOT}' exec '{sys.executable}' -c '{code}' \"$@\"")
    program(tmp_path / "bin/podman", "echo box-b")
    config = tmp_path / ".config/accelerd/accelerd.toml"
    config.parent.mkdir(parents=True)
    config.write_text(CONFIG)
    (tmp_path / "qwen.gguf").touch()
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    return {"HOME": str(tmp_path), "PATH": path, "LANG": "C.UTF-8", "XDG_RUNTIME_DIR": str(tmp_path)}


@pytest.fixture
def daemon(env: dict[str, str]) -> Iterator[FakeDaemon]:
    """A daemon that accelctl asks."""
    with tempfile.TemporaryDirectory() as short, FakeDaemon(Path(short) / "s").serve() as running:
        env["ACCELERD_SOCKET"] = str(running.path)
        yield running


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(("line", "offered"), CASES, ids=[line for line, _ in CASES])
def test_a_real_shell_offers(shell: str, line: str, offered: set[str], env: dict[str, str], tmp_path: Path) -> None:
    found = SHELLS[shell](line, env, tmp_path)
    if not line.rpartition(" ")[2].startswith("-"):  # zsh offers options where nothing else can follow
        found = {word for word in found if not word.startswith("-")}
    assert found == offered


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_is_offered(shell: str, env: dict[str, str], tmp_path: Path) -> None:
    assert SHELLS[shell]("accelctl ", env, tmp_path) >= set(COMMANDS)


@pytest.mark.parametrize("shell", SHELLS)
def test_names_with_colons_are_completed_behind_them(shell: str, env: dict[str, str], tmp_path: Path) -> None:
    """bash takes words apart at colons, and replaces only what follows the last."""
    offered = {"Q4", "Q8"} if shell == "bash" else {"org/repo:Q4", "org/repo:Q8"}
    assert SHELLS[shell]("accelctl load org/repo:Q", env, tmp_path) == offered


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("typed", "name"), [("two", "two words"), ("m", "m[1m]"), ("日", "日本 7B"), ("it", "it's;so")]
)
def test_names_with_any_characters_are_completed_as_one_word(
    shell: str, typed: str, name: str, env: dict[str, str], tmp_path: Path
) -> None:
    tables = (f"[models.{json.dumps(one, ensure_ascii=False)}]\npath = '/m'\n" for one in ("two words", "m[1m]"))
    others = '[models.plain]\npath = "/m"\naliases = ["日本 7B", "it\'s;so", "claude-*"]\n'
    (tmp_path / ".config/accelerd/accelerd.toml").write_text("".join(tables) + others)
    [offered] = SHELLS[shell](f"accelctl load {typed}", env, tmp_path)
    assert offered == name if shell == "fish" else shlex.split(offered) == [name]


@pytest.mark.parametrize("shell", SHELLS)
def test_fit_takes_models_and_files(shell: str, env: dict[str, str], tmp_path: Path) -> None:
    assert SHELLS[shell]("accelctl fit qwe", env, tmp_path) >= {"qwen", "qwen.gguf"}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("typed", ["~/qwe", "$HOME/qwe"])
def test_paths_go_on_as_they_were_typed(shell: str, typed: str, env: dict[str, str], tmp_path: Path) -> None:
    """zsh completes the last part alone."""
    offered = "qwen.gguf" if shell == "zsh" else f"{typed}n.gguf"
    assert SHELLS[shell](f"accelctl fit {typed}", env, tmp_path) == {offered}


@pytest.mark.parametrize("shell", SHELLS)
def test_values_behind_an_equals_sign(shell: str, env: dict[str, str], tmp_path: Path) -> None:
    """bash takes words apart there too."""
    offered = {"q4_0", "q4_1"} if shell == "bash" else {"--kv=q4_0", "--kv=q4_1"}
    assert SHELLS[shell]("accelctl fit --kv=q4", env, tmp_path) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])  # bash gives the script one command only
def test_other_commands_may_stand_in_front(shell: str, env: dict[str, str], tmp_path: Path) -> None:
    assert SHELLS[shell]("cd / && accelctl unload --f", env, tmp_path) == {"--force"}


@pytest.mark.parametrize(("shell", "between"), [("zsh", ":"), ("fish", "\t")])
def test_commands_and_options_are_described(shell: str, between: str, env: dict[str, str], tmp_path: Path) -> None:
    def shown(line: str) -> list[str]:
        asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": shell, "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line,
                 "COMP_POINT": str(len(line)), "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}  # fmt: skip
        asked |= {"_ARGCOMPLETE_DFS": "\t"} if shell == "fish" else {}
        command = ["sh", "-c", "accelctl 8>&1 1>/dev/null"]
        done = subprocess.run(command, env=env | asked, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert shown("accelctl remov") == [f"remove{between}{COMMANDS['remove']}"]
    assert shown("accelctl toolbox pi") == [f"pin{between}refuse to refresh a toolbox until it is unpinned"]
    assert shown("accelctl tune --q") == [f"--quick{between}fewer settings, fewer repeats"]
    assert shown("accelctl fit --kv=q8")[0].startswith(f"--kv=q8_0{between}type of the KV cache")
    assert shown("accelctl --socket=q") == [f"--socket=qwen.gguf{between}"]
    assert shown("accelctl load q") == [f"qwen{between}"]


@pytest.mark.parametrize("shell", SHELLS)
def test_names_of_a_running_daemon_are_offered(
    shell: str, daemon: FakeDaemon, env: dict[str, str], tmp_path: Path
) -> None:
    daemon.answers["GET status"] = Reply(status(model("running", "ready"), routes=[{"name": "route"}]))
    assert SHELLS[shell]("accelctl explain r", env, tmp_path) == {"running", "route"}
    del env["ACCELERD_SOCKET"]
    assert SHELLS[shell](f"accelctl explain --socket {daemon.path} r", env, tmp_path) == {"running", "route"}


@pytest.mark.parametrize("shell", SHELLS)
def test_no_name_is_run_as_code(shell: str, daemon: FakeDaemon, env: dict[str, str], tmp_path: Path) -> None:
    names = [f"x$(touch {tmp_path}/hit)", f"x`touch {tmp_path}/hit`"]
    daemon.answers["GET status"] = Reply(status(*(model(name, "ready") for name in names)))
    assert len(SHELLS[shell]("accelctl load x", env, tmp_path)) == 2
    assert not (tmp_path / "hit").exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_without_accelctl_the_shell_stays_silent(shell: str, env: dict[str, str], tmp_path: Path) -> None:
    program(tmp_path / "bin/accelctl", "echo trouble >&2\nexit 1")
    found = SHELLS[shell]("accelctl load ", env, tmp_path)
    assert not {word for word in found if not word.startswith("-")}


def undecided(parser: argparse.ArgumentParser) -> set[str]:
    """Metavars of values without choices or a completer."""
    found = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {name for child in action.choices.values() for name in undecided(child)}
        elif action.nargs != 0 and not action.choices and not hasattr(action, "completer"):
            found.add(str(action.metavar or action.dest.upper()))
    return found


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_value_is_decided_upon(name: str) -> None:
    parser = command_parser(name)[1] if name else overview()
    set_completers(parser, name)
    assert undecided(parser) <= FREE, "add each to COMPLETERS in accelerd/cli/completion.py, or to FREE here"


@pytest.mark.parametrize("name", files())
def test_what_is_kept_is_what_would_be_made(name: str) -> None:
    assert (ROOT / name).read_text() == files()[name], "stale: python -m accelerd.paper"


def test_names_are_printed_without_a_daemon(tmp_path: Path) -> None:
    """`models --names` and `toolbox list --names`: without a daemon, from the configuration."""
    home = tmp_path / "home"
    config = home / ".config/accelerd/accelerd.toml"
    config.parent.mkdir(parents=True)
    config.write_text(
        '[models.qwen]\npath = "/m.gguf"\naliases = ["gpt-4o"]\n'
        '[models.boxed]\npath = "/m.gguf"\nhome = "toolbox"\ncontainer = "box-a"\n'
    )

    def names(*argv: str) -> list[str]:
        code = "import sys; from accelerd.cli import main; sys.exit(main(sys.argv[1:]))"
        env = {"HOME": str(home), "PATH": "/nowhere", "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(tmp_path)}
        command = [sys.executable, "-c", code, *argv, "--names"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
        assert not done.stderr
        return done.stdout.splitlines()

    assert names("models") == ["qwen", "boxed", "gpt-4o"]
    assert names("toolbox", "list") == ["box-a"]
    config.write_text("broken = [\n")
    assert names("models") == []
