"""What every command is given (files, connection, output, input), and the names of models and toolboxes.

Names for completion come fast and without error messages: from the daemon, else from the configuration as far as it can
be read.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from accelerd.base.names import ANY
from accelerd.base.ports import Clock, Roots, SystemClock
from accelerd.cli.connect import START_COMMANDS, DaemonClient
from accelerd.cli.failure import ExitStatus, Failure, no_model
from accelerd.cli.output import CliOutput

if TYPE_CHECKING:
    from accelerd.config import Config, Problem
    from accelerd.config.model import ModelSpec, Route


HUB_ERRORS = ("model_gated", "hub_not_found", "hub_offline", "download_failed")
HUB_VARIABLES = ("HF_ENDPOINT", "HF_TOKEN", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy")


@dataclass(frozen=True)
class Context:
    roots: Roots
    client: DaemonClient
    out: CliOutput
    stdin: TextIO
    env: Mapping[str, str]
    clock: Clock = field(default_factory=SystemClock)


@dataclass(frozen=True)
class Command:
    """One command. A module with several has them in `COMMANDS`; one with a single command has these as its names."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Context, argparse.Namespace], int]  # the exit status; raises Failure
    epilog: str = ""


def configuration(context: Context) -> tuple[Config | None, list[Problem]]:
    """The configuration on disk, None where it is not valid, and its problems."""
    from accelerd.config import check

    found, problems = check(context.roots.config_file, context.roots.home)
    return found, list(problems)


def name_mistakes(failure: Failure, context: Context) -> None:
    """Of a daemon that does not run: mistakes in its configuration may be why."""
    found, problems = configuration(context)
    if found is None:
        from accelerd.config.problems import first_error

        failure.message += f"; its configuration has mistakes: {first_error(problems)}"
        failure.hint = f"see: accelctl config check; then {failure.hint}"


@contextmanager
def hub_errors(context: Context) -> Iterator[None]:
    """Says of a download by accelerd that failed what this shell has set for it, which accelerd does not see."""
    try:
        yield
    except Failure as failure:
        if failure.code in HUB_ERRORS:
            failure.message += own_environment(context)
        raise


def own_environment(context: Context) -> str:
    """A clause where this shell has variables for downloads."""
    named = [name for name in HUB_VARIABLES if context.env.get(name)]
    return f"; accelerd has its own environment, not {', '.join(named)} of this shell: docs/models.md" if named else ""


def no_arguments(parser: argparse.ArgumentParser) -> None:
    """Of a command that takes none of its own."""


def reload(context: Context) -> bool:
    """Have the daemon read the configuration again; False when none runs."""
    try:
        context.client.post("reload")
    except Failure as failure:
        if failure.code != "not_running":
            raise
        return False
    return True


def how_to_start(context: Context) -> str:
    """What to do where no daemon runs."""
    from accelerd.cli.programs import SystemPrograms, why_down

    usual = context.client.path == context.roots.control_socket
    down = why_down(SystemPrograms(context.env)) if usual else None
    if down is not None and down.message:
        return f"{down.message}; {down.hint}"
    return f"start the daemon: {down.command if down else START_COMMANDS}"


def unknown_name(context: Context, name: str) -> Failure:
    """No model has that name: the one that was probably meant, or the names that there are."""
    status = context.client.get("status")
    route = next((route for route in status.get("routes") or () if route["name"] == name), None)
    if route is not None:
        text = f"{name} is a route, not a model"
        hint = f"its models: {', '.join(route['models'])}"
        return Failure(text, exit=ExitStatus.NO_SUCH_MODEL, code="model_not_found", hint=hint)
    known = names_in(status)
    some = ", ".join(known[:6]) + (" …" if len(known) > 6 else "")
    return no_model(name, known, f"known models: {some}" if some else "add one: accelctl add")


def names_in(status: dict[str, Any], *, shown: bool = True) -> list[str]:
    """Names that a request may use: models, routes, variants, aliases, then those with a generated prefix. Each once.

    `shown`: without the hidden aliases, and without patterns.
    """
    models, routes = status.get("models") or [], status.get("routes") or []
    variants = [one for owner in (*models, *routes) for one in owner.get("variants") or ()]
    named = (*models, *routes, *variants)
    names = [
        *(one["name"] for one in named),
        *(alias for one in named for alias in one.get("aliases") or () if not (shown and ANY in alias)),
        *(alias for one in named for alias in one.get("hidden_aliases") or () if not shown),
        *(m["prefixed"] for m in models if m.get("prefixed")),
    ]
    return list(dict.fromkeys(names))


def model_names(context: Context) -> Iterator[str]:
    """`names_in` of a daemon that runs, or the names in the configuration; never fails, starts none."""
    from accelerd.cli.programs import SystemPrograms, asleep

    with suppress(Failure):
        if context.client.path != context.roots.control_socket or not asleep(SystemPrograms(context.env)):
            yield from names_in(context.client.get("status", timeout=2.0))
            return
    config, _ = configuration(context)
    if config is not None:
        owners: tuple[ModelSpec | Route, ...] = (*config.models.values(), *config.routes.values())
        named = (*owners, *(one for owner in owners for one in owner.variants))
        yield from (one.name for one in named)
        yield from (alias for one in named for alias in one.aliases if ANY not in alias)


def route_names(context: Context) -> Iterator[str]:
    """Of the routes in the configuration; never fails."""
    config, _ = configuration(context)
    yield from config.routes if config is not None else ()


def toolbox_names(context: Context) -> Iterator[str]:
    """The toolboxes that models are configured to run in, then whatever others podman has."""
    from accelerd.cli.programs import SystemPrograms

    config, _ = configuration(context)
    for spec in config.models.values() if config is not None else ():
        if spec.home in ("toolbox", "distrobox") and spec.container:
            yield spec.container
    label = "label=com.github.containers.toolbox=true"
    command = ["podman", "container", "list", "--all", "--filter", label, "--format", "{{.Names}}"]
    outcome = SystemPrograms(context.env).run(command)
    yield from outcome.stdout.split() if outcome.status == 0 else ()


def print_names(context: Context, found: Iterable[str]) -> int:
    """One a line, each once."""
    known = list(dict.fromkeys(found))
    context.out.result(known)
    for name in known:
        context.out.line(name)
    return ExitStatus.OK
