"""The configuration, the model files and the engines' programs, checked by the code that uses them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from accelerd.base.errors import AccelError
from accelerd.base.names import accelctl
from accelerd.cli.checks.base import Check, CheckContext
from accelerd.cli.commands.remove import is_own, own_dropin
from accelerd.cli.engine_program import program_of
from accelerd.cli.failure import Failure
from accelerd.cli.text import count, printable
from accelerd.config import on_disk
from accelerd.config.command import presets
from accelerd.config.model import ModelSpec
from accelerd.devices.model import usable
from accelerd.engines.base import EngineBuild
from accelerd.estimate.model_kind import identify

GPU_BUILD = "{} --vulkan builds one that uses the GPU, docs/gpu.md shows other ways"
ON_THE_HOST = ("auto", "child", "systemd")  # homes whose programs are this machine's; containers have their own


def configuration(s: CheckContext) -> Iterator[Check]:
    found, problems = s.machine.checked
    errors = [p for p in problems if p.severity == "error"]
    file = s.roots.config_file
    if found is None:
        first = f", the first: {errors[0]}" if errors else ""
        detail = f"{count(len(errors), 'problem')}{first}. What depends on it is not checked"
        yield Check("config", "fail", detail, "accelctl config check")
    elif not found.models:
        yield Check("config", "warn", f"no models in {file}", "accelctl add FILE, or accelctl add hf:ORG/REPO")
    elif problems:
        detail = f"{count(len(problems), 'warning')}, the first: {problems[0]}"
        yield Check("config", "warn", detail, "accelctl config check")
    else:
        yield Check("config", "ok", f"{count(len(found.models), 'model')} in {file}")


def model_files(s: CheckContext) -> Iterator[Check]:
    """Is every file that a model names there, all shards of it, and what it should be?"""
    from accelerd.engines.llama_server import files

    # What a path means in a container is seen there, when the model is loaded.
    with_files = [
        spec
        for spec in s.config.models.values()
        if spec.path and spec.home in ON_THE_HOST and spec.engine == "llama-server"  # others' may be of any kind
    ]
    bad, reader = 0, files.FileReader(s.env)
    for spec in with_files:
        try:
            reader.check(spec)
        except AccelError as error:
            bad += 1
            yield Check("model-files", "fail", f"{spec.name}: {error.message}", correction(s, spec))
            continue
        found = identify(Path(spec.path or ""))
        if not found.runs:
            bad += 1
            detail = f"{spec.name}: {spec.path} cannot be used: {found.reason}; {found.hint}"
            yield Check("model-files", "fail", detail, correction(s, spec))
    if with_files and not bad:
        yield Check("model-files", "ok", f"{count(len(with_files), 'model file')} readable")


def correction(s: CheckContext, spec: ModelSpec) -> str:
    """What to do about a model whose file is wrong."""
    written = f"correct {spec.origin('path')}"
    return f"{written}, or: {accelctl('remove', spec.name)}" if is_own(own_dropin(s.roots, spec.name)) else written


def programs(s: CheckContext) -> Iterator[Check]:
    """Every llama-server of this machine that the configuration names: does it run, which flags does it know?"""
    models = [spec for spec in s.config.models.values() if spec.home in ON_THE_HOST and spec.engine == "llama-server"]
    if not s.config.models:
        models = [ModelSpec(name="any")]
    for spec in {spec.binary or s.config.llama_server.binary: spec for spec in reversed(models)}.values():
        yield program(s, spec)


def commands(s: CheckContext) -> Iterator[Check]:
    """The programs, presets and files of models of the engine `command` on this machine."""
    for spec in s.config.models.values():
        if spec.engine not in ("command", "vllm") or spec.home not in ON_THE_HOST:
            continue
        found = [*on_disk.files(spec)]
        for field, reason in found:
            origin = spec.origin(field)
            fix = f"correct {field} in {origin.file}:{origin.line}"
            yield Check("command", "fail", printable(f"{spec.name}: {reason}"), fix)
        if not found and (unfound := not_startable(s, spec)):
            yield Check("command", "fail", printable(f"{spec.name}: {unfound.message}"), unfound.hint)
        elif not found:
            preset = presets().get(spec.command.preset or "")
            known = f", preset {spec.command.preset} (of {preset.version})" if preset is not None else ""
            program = spec.binary or spec.command.argv[0]
            yield Check("command", "ok", printable(f"{spec.name} runs {program}{known}"))


def not_startable(s: CheckContext, spec: ModelSpec) -> Failure | None:
    """Why the daemon could not start it now: its PATH counts, not this shell's."""
    try:
        s.client.get("explain", model=spec.name)
    except Failure as failure:
        return failure if failure.code == "model_failed" else None
    return None


def build_of(s: CheckContext, spec: ModelSpec) -> EngineBuild:
    """The program that would run the model. AccelError."""
    known = spec.name in s.config.models
    return program_of(spec, s.client, s.config.llama_server, s.env, s.roots.cache, configured=known)


def program(s: CheckContext, spec: ModelSpec) -> Check:
    """Does it run, is it llama-server, does it use the GPU that is there?"""
    try:
        build = build_of(s, spec)
    except AccelError as error:
        hint = s.checkout_tool("build-llama-server") or error.hint
        return Check("llama-server", "fail", printable(error.problem), hint)
    path = build.program
    if "--model" not in build.options:
        fix = s.checkout_tool("build-llama-server") or "set `binary` under [engines.llama-server]"
        return Check("llama-server", "fail", f"{path} is not llama-server: its --help lists no option --model", fix)
    gpus = usable(s.devices) if spec.gpu_layers != 0 else ()
    if build.backend == "cpu" and gpus:
        text = f"{path}, {build.version}, was built for the processor only, so {gpus[0].name} is idle"
        return Check(
            "llama-server", "warn", text, GPU_BUILD.format(s.checkout_tool("install") or "./packaging/install")
        )
    return Check("llama-server", "ok", f"{path}, {build.version}" + (f", for {build.backend}" if build.backend else ""))
