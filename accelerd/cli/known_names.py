"""Names of models and toolboxes for shell completion: fast, and without error messages.

Models come from the daemon; where none runs, from the configuration as far as it can be read. Must never fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from accelerd.cli.context import Context
from accelerd.cli.context import model_names as names_in
from accelerd.cli.failure import ExitStatus, Failure

BOXES = ("toolbox", "distrobox")
LABEL = "label=com.github.containers.toolbox=true"


def print_names(context: Context, found: Iterable[str]) -> int:
    """One a line, each once."""
    known = list(dict.fromkeys(found))
    context.out.result(known)
    for name in known:
        context.out.line(name)
    return ExitStatus.OK


def model_names(context: Context) -> Iterator[str]:
    """Every name that a request may use: from the daemon, else from the configuration."""
    try:
        return iter(names_in(context.client.get("status", timeout=2.0)))
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
    from accelerd.cli.programs import SystemPrograms
    from accelerd.config import check

    config, _ = check(context.roots.config_file, context.roots.home)
    for spec in (config.models if config else {}).values():
        if spec.home in BOXES and spec.container:
            yield spec.container
    command = ["podman", "container", "list", "--all", "--filter", LABEL, "--format", "{{.Names}}"]
    outcome = SystemPrograms(context.env).run(command)
    yield from outcome.stdout.split() if outcome.status == 0 else ()
