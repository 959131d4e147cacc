"""The configuration, the model files and the engines' programs, checked by the code that uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from accelerd.base.errors import AccelError
from accelerd.cli.checks.base import Check, CheckContext
from accelerd.cli.text import count, printable
from accelerd.config.model import ModelSpec

ON_THE_HOST = ("auto", "child", "systemd")  # homes whose programs are this machine's; containers have their own


def configuration(s: CheckContext) -> Iterator[Check]:
    found, problems = s.machine.checked
    errors = [p for p in problems if p.severity == "error"]
    file = s.roots.config_file
    if found is None:
        first = f", the first: {errors[0]}" if errors else ""
        yield Check("config", "fail", f"{count(len(errors), 'problem')}{first}", "accelctl config check")
    elif not found.models:
        yield Check("config", "warn", f"no models in {file}", "accelctl add PATH-OR-NAME")
    elif problems:
        detail = f"{count(len(problems), 'warning')}, the first: {problems[0]}"
        yield Check("config", "warn", detail, "accelctl config check")
    else:
        yield Check("config", "ok", f"{count(len(found.models), 'model')} in {file}")


def model_files(s: CheckContext) -> Iterator[Check]:
    """Is every file that a model names there, all shards of it, and what it should be?"""
    from accelerd.engines.llama_server import files

    # What a path means in a container is seen there, when the model is loaded.
    with_files = [spec for spec in s.config.models.values() if spec.path and spec.home in ON_THE_HOST]
    bad, reader = 0, files.FileReader(s.env)
    for spec in with_files:
        try:
            reader.check(spec)
        except AccelError as error:
            bad += 1
            fix = f"correct {spec.origin('path')}, or: accelctl remove {spec.name}"
            yield Check("model-files", "fail", f"{spec.name}: {error.message}", fix)
    if with_files and not bad:
        yield Check("model-files", "ok", f"{count(len(with_files), 'model file')} readable")


def programs(s: CheckContext) -> Iterator[Check]:
    """Every llama-server of this machine that the configuration names: does it run, which flags does it know?"""
    models = [spec for spec in s.config.models.values() if spec.home in ON_THE_HOST and spec.engine == "llama-server"]
    if not s.config.models:
        models = [ModelSpec(name="any")]
    for spec in {spec.binary or s.config.llama_server.binary: spec for spec in reversed(models)}.values():
        yield program(s, spec)


def program(s: CheckContext, spec: ModelSpec) -> Check:
    from accelerd.engines.llama_server.engine import LlamaServer

    try:
        found = asyncio.run(LlamaServer(s.config.llama_server, environ=s.env).features(spec))
    except AccelError as error:
        hint = s.checkout_tool("build-llama-server") or error.hint
        return Check("llama-server", "fail", printable(error.problem), hint)
    load = found.pick("--load-mode", "--no-mmap") or "no option for mmap"
    options = len({option.names for option in found.options.values()})
    return Check("llama-server", "ok", f"{found.binary}, {found.version}, {options} options, {load}")
