"""`python -m accelerd.paper [DIR]`: writes completions and manual pages into a checkout (here, when none is named)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from argcomplete.shell_integration import shellcode

from accelerd.paper.man import accelctl_page, accelerd_page, config_page
from accelerd.paper.roff import MARK

# Before argcomplete's own: zsh would quote the ~ and the $ of a path, and $BUFFER may have other commands in front.
ZSH: Final = """\
if [[ $PREFIX == [~\\$]* ]]; then _files; return; fi
local -h BUFFER="${(j: :)words[1,CURRENT-1]} $QIPREFIX$PREFIX"
local -h CURSOR=${#BUFFER}
"""


def files() -> dict[str, str]:
    """Path below the checkout → text."""
    return {
        "contrib/completions/accelctl.bash": f"# {MARK}\n{completion('bash')}",
        "contrib/completions/_accelctl": f"#compdef accelctl\n# {MARK}\n{ZSH}{completion('zsh')}",
        "contrib/completions/accelctl.fish": f"# {MARK}\n{completion('fish')}",
        "docs/man/accelctl.1": accelctl_page(),
        "docs/man/accelerd.8": accelerd_page(),
        "docs/man/accelerd.toml.5": config_page(),
    }


def completion(shell: str) -> str:
    """argcomplete's script: it asks accelctl (accelerd.cli.completion), and offers no file names of its own accord."""
    code = shellcode(["accelctl"], shell=shell, complete_arguments=["-o nospace"], argcomplete_script="accelctl")
    return code.strip().removeprefix("#compdef accelctl\n") + "\n"


def main(argv: list[str]) -> int:
    root = Path(argv[0]) if argv else Path()
    for name, text in files().items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
