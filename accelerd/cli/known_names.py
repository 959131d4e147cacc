"""The names that a person may type: of models, of toolboxes. For shells that complete them, so quick, and never loud.

The daemon knows best which models there are; where none runs, the configuration does, as far as it can be read. Must
never fail: a shell that waits for names is no place for an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from accelerd.cli.context import Context
from accelerd.cli.context import model_names as names_in
from accelerd.cli.failure import Exit, Failure

BOXES = ("toolbox", "distrobox")
LABEL = "label=com.github.containers.toolbox=true"


def print_names(context: Context, found: Iterable[str]) -> int:
    """One a line, each once."""
    known = list(dict.fromkeys(found))
    context.out.result(known)
    for name in known:
        context.out.line(name)
    return Exit.OK


def model_names(context: Context) -> Iterator[str]:
    """Every name that a request may use: as the daemon says, else as the configuration says."""
    try:
        return iter(names_in(context.client.get("status", patience=2.0)))
    except Failure:
        return configured(context)


def configured(context: Context) -> Iterator[str]:
    """The models, routes and aliases of the configuration; of a broken one, none."""
    from accelerd.config import check

    config, _ = check(context.roots.config_file, context.roots.home)
    models = config.models if config else {}
    yield from models
    yield from config.routes if config else ()
    for spec in models.values():
        yield from spec.aliases


def toolbox_names(context: Context) -> Iterator[str]:
    """The toolboxes that models are configured to run in, then whatever others podman has."""
    from accelerd.cli.checks.base import ThisMachine
    from accelerd.config import check

    config, _ = check(context.roots.config_file, context.roots.home)
    for spec in (config.models if config else {}).values():
        if spec.home in BOXES and spec.container:
            yield spec.container
    command = ["podman", "container", "list", "--all", "--filter", LABEL, "--format", "{{.Names}}"]
    outcome = ThisMachine(context.env).run(command)
    yield from outcome.stdout.split() if outcome.status == 0 else ()
