"""accelctl is completed by real shells: commands, options, values, and the names of models and toolboxes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from accelerd.cli import COMMANDS
from accelerd.paper.files import files
from accelerd.paper.tree import tree, undecided

from .complete import SCRIPTS, SHELLS

ROOT = Path(__file__).parents[2]
MODELS = ["qwen", "org/repo:Q4", "org/repo:Q8"]
STANDIN = """#!/bin/sh
case "$*" in
  "models --names") printf '%s\\n' qwen org/repo:Q4 org/repo:Q8 ;;
  "toolbox list --names") printf '%s\\n' box-a box-b ;;
  *) echo "it was run with: $*"; echo "with: $*" >&2 ;;
esac
"""
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
    ("accelctl load qwen ", set()),
    ("accelctl unload --f", {"--force"}),
    ("accelctl toolbox re", {"refresh"}),
    ("accelctl toolbox pin ", {"box-a", "box-b"}),
    ("accelctl toolbox refresh --f", {"--force"}),
    ("accelctl memory forget q", {"qwen"}),
    ("accelctl config s", {"show", "schema"}),
    ("accelctl fit --kv q4", {"q4_0", "q4_1"}),
    ("accelctl yield --for ", set()),
]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A home with a stand-in for accelctl; nobody's own settings."""
    program = tmp_path / "bin" / "accelctl"
    program.parent.mkdir()
    program.write_text(STANDIN)
    program.chmod(0o755)
    (tmp_path / "qwen.gguf").touch()
    return {"HOME": str(tmp_path), "PATH": f"{program.parent}:{os.environ['PATH']}", "LANG": "C.UTF-8"}


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
def test_fit_takes_models_and_files(shell: str, env: dict[str, str], tmp_path: Path) -> None:
    assert SHELLS[shell]("accelctl fit qwe", env, tmp_path) >= {"qwen", "qwen.gguf"}


@pytest.mark.parametrize("shell", SHELLS)
def test_no_name_is_run_as_code(shell: str, env: dict[str, str], tmp_path: Path) -> None:
    program = tmp_path / "bin" / "accelctl"
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' 'x$(touch {tmp_path}/hit)' 'x`touch {tmp_path}/hit`'\n")
    SHELLS[shell]("accelctl load x", env, tmp_path)
    assert not (tmp_path / "hit").exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_without_accelctl_the_shell_stays_silent(shell: str, env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bin" / "accelctl").write_text("#!/bin/sh\necho trouble >&2\nexit 1\n")
    found = SHELLS[shell]("accelctl load ", env, tmp_path)
    assert not {word for word in found if not word.startswith("-")}


def test_every_value_is_decided_upon() -> None:
    assert undecided(tree()) == set(), "add each to KINDS or FREE in accelerd/paper/tree.py"


@pytest.mark.parametrize("name", files())
def test_what_is_kept_is_what_would_be_made(name: str) -> None:
    assert (ROOT / name).read_text() == files()[name], "stale: python -m accelerd.paper"


def test_the_scripts_ask_the_real_program_only_what_it_understands(tmp_path: Path) -> None:
    """`models --names` and `toolbox list --names`: without a daemon, from the configuration."""
    home = tmp_path / "home"
    config = home / ".config/accelerd/accelerd.toml"
    config.parent.mkdir(parents=True)
    config.write_text(
        '[models.qwen]\npath = "/m.gguf"\naliases = ["gpt-4o"]\n'
        '[models.boxed]\npath = "/m.gguf"\nhome = "toolbox"\ncontainer = "box-a"\n'
    )
    for script in SCRIPTS.iterdir():
        text = script.read_text()
        assert "accelctl models --names" in text
        assert "accelctl toolbox list --names" in text

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
