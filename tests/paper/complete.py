"""What a real shell offers for a command line: bash, zsh and fish, each asked in its own way.

They run the accelctl on their PATH; nothing else of this machine's is loaded.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "contrib" / "completions"
BASH = """
. "$1"; COMP_LINE=$2; COMP_POINT=${#2}; COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
compopt() { :; }  # it fails where nothing is being typed
complete -p accelctl >&2; _python_argcomplete_accelctl accelctl
[ ${#COMPREPLY[@]} -eq 0 ] || printf '%s\\n' "${COMPREPLY[@]}"
"""
# compadd is what every completion ends in: this one says what would be added, with what stands before it
ZSH = r"""
PS1='READY> '; unset zle_bracketed_paste; unsetopt beep prompt_cr prompt_sp; TRAPEXIT() { }
fpath=("$SCRIPTS" $fpath); autoload -Uz compinit; compinit -D -u; zstyle ':completion:*' menu no
compadd() {
  if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then builtin compadd "$@"; return; fi
  local -a hits
  builtin compadd -A hits "$@"
  local hit
  for hit in "${hits[@]}"; do print -r -- "HIT<$hit>" >>"$HITS"; done
  builtin compadd "$@"
}
offer() { : >"$HITS"; zle complete-word; print -r -- END >>"$HITS"; BUFFER=""; zle -I; }
zle -N offer; bindkey '^T' offer
print STARTED
"""


def program(name: str) -> str:
    """Its absence is a failure: tests/run has it installed."""
    found = shutil.which(name)
    if not found:
        pytest.fail(f"no {name}: run tests/run, or install the package {name}", pytrace=False)
    return found


def bash(line: str, env: Mapping[str, str], home: Path) -> set[str]:
    command = [program("bash"), "--norc", "--noprofile", "-c", BASH, "-", str(SCRIPTS / "accelctl.bash"), line]
    done = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == "complete -o nospace -F _python_argcomplete_accelctl accelctl\n"
    return set(done.stdout.splitlines())


def fish(line: str, env: Mapping[str, str], home: Path) -> set[str]:
    code = "source $argv[1]; complete -C $argv[2]"
    command = [program("fish"), "--no-config", "-c", code, str(SCRIPTS / "accelctl.fish"), line]
    done = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=30, check=True)
    assert not done.stderr, done.stderr
    return {found.partition("\t")[0] for found in done.stdout.splitlines()}


def zsh(line: str, env: Mapping[str, str], home: Path) -> set[str]:
    """A zsh on a terminal of its own, in which Control-T is pressed after the line."""
    (home / ".zshrc").write_text(ZSH)
    hits = home / "hits"
    hits.unlink(missing_ok=True)  # of an earlier line
    extra = {"SCRIPTS": str(SCRIPTS), "HITS": str(hits), "ZDOTDIR": str(home), "TERM": "dumb"}
    terminal, end = pty.openpty()
    # not pty.fork(): this process has threads, which a fork does not take along
    command = [program("setsid"), "--ctty", program("zsh"), "-d", "-i"]
    with subprocess.Popen(command, env={**env, **extra}, cwd=home, stdin=end, stdout=end, stderr=end) as shell:
        os.close(end)
        try:
            said = _until(terminal, lambda text: "READY> " in text.partition("STARTED")[2])
            os.write(terminal, line.encode() + b"\x14")
            said += _until(terminal, lambda _: hits.exists() and hits.read_text().endswith("END\n"))
        finally:
            shell.kill()
            os.close(terminal)
    assert "command not found" not in said, said
    return set(re.findall(r"^HIT<(.*)>$", hits.read_text(), re.MULTILINE))


def _until(terminal: int, enough: Callable[[str], bool]) -> str:
    """What the terminal shows until then."""
    text, deadline = "", time.monotonic() + 30
    while not enough(text):
        assert time.monotonic() < deadline, f"the shell does not answer: {text!r}"
        if select.select([terminal], [], [], 0.05)[0]:
            text += os.read(terminal, 65536).decode(errors="replace")
    return text


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
