"""Every file that is made here, with its place in a checkout."""

from __future__ import annotations

from accelerd.paper.man import accelctl_page, accelerd_page
from accelerd.paper.man_config import config_page
from accelerd.paper.shells import bash, fish, zsh
from accelerd.paper.tree import tree


def files() -> dict[str, str]:
    """Path below the checkout → text."""
    root = tree()
    return {
        "contrib/completions/accelctl.bash": bash(root),
        "contrib/completions/_accelctl": zsh(root),
        "contrib/completions/accelctl.fish": fish(root),
        "docs/man/accelctl.1": accelctl_page(root),
        "docs/man/accelerd.8": accelerd_page(),
        "docs/man/accelerd.toml.5": config_page(),
    }
