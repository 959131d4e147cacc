"""A model for the NPU by FastFlowLM's name: found in its list, downloaded by `flm`, described for a drop-in.

For `accelctl add npu/NAME`. Downloads with `flm pull` and nothing else; writes no configuration.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Final

from accelerd.base.errors import AccelError
from accelerd.base.ports import Roots
from accelerd.cli.context import Context
from accelerd.cli.failure import Failure, no_model
from accelerd.cli.local_machine import LocalMachine
from accelerd.cli.progress import follow

PREFIX: Final = "npu/"
TAIL: Final = 5  # lines of a failed download
_BYTES: Final = re.compile(r"Downloading:\s*[\d.]+%\s*\(([\d.]+)MB\s*/\s*([\d.]+)MB\)")
_COLOURS: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class NpuModel:
    table: dict[str, Any]  # keys of a drop-in
    name: str  # how accelerd would call it
    program: str
    tag: str
    here: bool  # it was fetched already


def look_up(context: Context, source: str, binary: str) -> NpuModel:
    """The model that `npu/NAME` names. Raises Failure."""
    from accelerd.engines.flm import catalogue, program

    wanted = source.removeprefix(PREFIX)
    try:
        path = program.find(binary, context.env)
        asked = program.FlmProgram().models(path, program.environment(context.env))
        known = asyncio.run(asked)
    except AccelError as error:
        if not any(device.kind == "npu" for device in LocalMachine(context.roots, context.clock).devices()):
            hint = "a model for the GPU or the processor: accelctl add hf:ORG/REPO"
            raise Failure(f"this machine has no NPU for {source}", code="no_npu", hint=hint) from None
        raise Failure(error.problem, code="no_program", hint=error.hint) from None
    except program.FlmUnavailable as error:
        raise Failure(f"{binary} did not list its models: {error}", hint="see: accelctl doctor") from None
    tag = catalogue.find_tag(wanted, known)
    if tag is None:
        near = catalogue.similar_tags(wanted, known)
        guess = " or ".join(PREFIX + catalogue.plain_name(one) for one in near)
        unknown = no_model(wanted, (), f"did you mean {guess}?" if guess else "see: flm list")
        unknown.message = catalogue.why_absent(wanted, known) or ""
        raise unknown
    table: dict[str, Any] = {"engine": "flm", "model": tag}
    extra = {"asr": "transcription", "embed": "embeddings"}.get(known[tag].kind)
    table |= {extra: True} if extra else {}
    return NpuModel(table, catalogue.model_name(tag), path, tag, known[tag].installed is True)


def same(one: str, other: str) -> bool:
    from accelerd.engines.flm import catalogue

    return catalogue.plain_name(one) == catalogue.plain_name(other)


def fetch(context: Context, wanted: NpuModel) -> None:
    """Download the model if it is missing, with progress; print first what would keep it from running."""
    if wanted.here:
        return
    for trouble in troubles(context, wanted.program):
        context.out.note(f"! {trouble}")
    pull(context, wanted.program, wanted.tag)


def troubles(context: Context, path: str) -> list[str]:
    """What keeps the NPU from working, as `flm validate` reports it."""
    from accelerd.engines.flm import program, stack

    try:
        report = asyncio.run(program.FlmProgram().validate(path, program.environment(context.env)))
    except program.FlmUnavailable:
        return []  # accelctl doctor reports that
    found = stack.troubles(report, command_line=kernel_command_line(context.roots))
    return [f"{one.message}: {one.fix}" for one in found]


def kernel_command_line(roots: Roots) -> str:
    try:
        return (roots.proc / "cmdline").read_text(errors="replace")
    except OSError:
        return ""


def pull(context: Context, path: str, tag: str) -> None:
    """`flm pull`. Failure with its last lines."""
    from accelerd.engines.flm import program

    try:
        process = subprocess.Popen(
            [path, "pull", tag],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**context.env, **program.QUIET},
        )
    except OSError as error:
        raise Failure(f"cannot run {path}: {error.strerror}", code="no_program") from None
    lines: list[str] = []
    try:
        assert process.stdout is not None
        follow(context.out, tag, progress(process.stdout, context.clock.monotonic, lines))
        status = process.wait()
    finally:
        if process.poll() is None:  # interrupted
            process.terminate()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
    if status != 0:
        raise Failure(
            f"flm pull {tag} ended with status {status}: nothing was added",
            code="pull_failed", tail=lines[-TAIL:], hint=f"try again, or download it yourself: flm pull {tag}",
        )  # fmt: skip


def progress(output: IO[bytes], now: Callable[[], float], lines: list[str]) -> Iterator[dict[str, Any]]:
    """What it prints as events of progress; what is no count of bytes goes into `lines` too."""
    began = now()
    for line in pieces(output):
        found = _BYTES.search(line)
        event: dict[str, Any] = {"event": "progress", "state": "fetching", "elapsed": now() - began}
        if found:
            event |= {"memory": _mb(found[1]), "memory_expected": _mb(found[2])}
        else:
            lines.append(line)
            event["line"] = line
        yield event


def pieces(output: IO[bytes]) -> Iterator[str]:
    """Its lines, and what it writes over a line again and again, without colours."""
    rest = b""
    while chunk := output.read1(4096) if hasattr(output, "read1") else output.read(1):
        *ended, rest = re.split(rb"[\r\n]+", rest + chunk)
        for one in ended:
            text = _COLOURS.sub("", one.decode(errors="replace")).strip()
            if text:
                yield text
    last = _COLOURS.sub("", rest.decode(errors="replace")).strip()
    if last:
        yield last


def _mb(text: str) -> int:
    return int(float(text) * (1 << 20))
