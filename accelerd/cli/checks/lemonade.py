"""Models in a Lemonade Server: is there one, of which version, what runs its models of llama.cpp, are its models here?

Only where the configuration has such models. Starts no server; one that is already running is asked what it has.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence

from accelerd.base.errors import AccelError
from accelerd.cli.checks.base import Check, CheckContext
from accelerd.cli.text import count, printable
from accelerd.config.model import ModelSpec


def lemonade(s: CheckContext) -> Iterator[Check]:
    """The server that is used, or what accelerd would start."""
    wanted = [spec for spec in s.config.models.values() if spec.engine == "lemonade"]
    if not wanted:
        return
    if s.config.lemonade.url is not None:
        yield from asyncio.run(_running(s, s.config.lemonade.url, wanted))
        return
    yield asyncio.run(_program(s, wanted[0]))
    yield _llama_server(s)
    yield _models(s)


async def _running(s: CheckContext, url: str, wanted: Sequence[ModelSpec]) -> list[Check]:
    """Does it answer, to that key? Has it the models?"""
    from accelerd.engines.http import HttpError, HttpUnreachable
    from accelerd.engines.lemonade.client import LemonadeClient, LemonadeRefused, ServerAddress, named
    from accelerd.engines.lemonade.engine import read_key

    try:
        client = LemonadeClient(ServerAddress(url, read_key(s.config.lemonade.key_file)))
        version = (await client.health()).version
        listed = {one.model.casefold(): one for one in await client.models()}
    except AccelError as error:
        return [Check("lemonade", "fail", printable(error.problem), error.hint)]
    except HttpUnreachable:
        return [
            Check(
                "lemonade", "fail", f"no Lemonade Server answers at {url}", "start it, or remove engines.lemonade.url"
            )
        ]
    except LemonadeRefused as error:
        if error.status in (401, 403):
            fix = "write its LEMONADE_API_KEY into the file that engines.lemonade.key_file names"
            return [Check("lemonade", "fail", f"the Lemonade Server at {url} refuses the key", fix)]
        return [Check("lemonade", "fail", f"the Lemonade Server at {url}: {printable(str(error))}")]
    except HttpError as error:
        return [Check("lemonade", "fail", f"{url} does not answer as a Lemonade Server: {printable(str(error))}")]
    found = [Check("lemonade", "ok", f"version {printable(version)} at {url}")]
    for spec in wanted:
        one = named(spec.model or "", listed)
        if one is None:
            found.append(
                Check("lemonade-models", "fail", f"{spec.name}: the server has no model {spec.model}", "lemonade list")
            )
        elif one.downloaded is False:
            detail = f"{spec.name}: {spec.model} is not downloaded"
            found.append(Check("lemonade-models", "fail", detail, f"lemonade pull {spec.model}"))
    return found


async def _program(s: CheckContext, spec: ModelSpec) -> Check:
    from accelerd.engines.lemonade import program

    try:
        found = await program.find(spec.binary or s.config.lemonade.binary, s.env)
    except AccelError as error:
        return Check("lemonade", "fail", f"{spec.name} needs it: {printable(error.problem)}", error.hint)
    version = ".".join(map(str, found.version))
    if not version:
        return Check("lemonade", "warn", f"{found.path} does not tell its version", f"{found.path} --version")
    return Check("lemonade", "ok", f"{found.path}, version {version}")


def _llama_server(s: CheckContext) -> Check:
    """What runs its models of llama.cpp."""
    from accelerd.engines.llama_server.engine import LlamaServer

    try:
        found = asyncio.run(LlamaServer(s.config.llama_server, environ=s.env).features(ModelSpec("lemonade")))
    except AccelError as error:
        detail = (
            f"{printable(error.problem)}: Lemonade cannot run models of llama.cpp, unless it has a program of its own"
        )
        return Check("lemonade-engine", "warn", detail, error.hint)
    return Check("lemonade-engine", "ok", f"its models of llama.cpp run with {found.binary}")


def _models(s: CheckContext) -> Check:
    """The folder where its models are looked for."""
    from accelerd.engines.lemonade.program import hub_folder

    folder = hub_folder(s.env)
    try:
        number = sum(name.startswith("models--") for name in os.listdir(folder))
    except FileNotFoundError:
        fix = "download a model (docs/lemonade.md), or set HF_HOME in accelerd's environment"
        return Check("lemonade-models", "warn", f"there is no folder {folder} with models of Lemonade", fix)
    except OSError as error:
        return Check("lemonade-models", "fail", f"cannot read {folder}: {error.strerror}", f"ls -ld {folder}")
    return Check("lemonade-models", "ok", f"{count(number, 'model')} in {folder}")
