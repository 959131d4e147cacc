"""`python -m tests.bench.names`: what a request costs accelerd by what its name means: a model, a variant, a route.

One daemon on the fake engine; the names take turns in every round. Of its CPU time for a request or a chunk of a stream
the smallest of all rounds counts, and how much more that is than for the plain name: what else runs on the machine only
adds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from . import host, usage
from .contenders import KEY, Accelerd, Direct, Setup
from .native import BenchError, build
from .rounds import CHAT, PROMPT

GOAL: Final = 10.0  # µs more than the plain name
CHUNKS: Final = 100  # of a stream
GAP_US: Final = 500  # between two
VARIANT: Final = "set = {temperature = 0.2}"
PROMPTED: Final = """\
set = {temperature = 0.2}
default = {top_k = 40, chat_template_kwargs = {enable_thinking = false}}
remove = ["seed"]
system = "You are short of words."
"""
NAMES: Final = f"""\
[models.fake.variants.variant]
{VARIANT}
[models.fake.variants.prompted]
{PROMPTED}
[routes.route]
models = ["fake", "other"]
[routes.varied]
models = ["fake", "other"]
[routes.varied.variants.route-variant]
{VARIANT}
[routes.members]
models = ["variant", "other"]
[routes.weights]
deployments = [{{model = "fake", weight = 3}}, {{model = "other"}}]
[routes.no-room]
models = ["huge", "fake"]
[routes.affinity]
models = ["fake", "other"]
session_affinity = true
[routes.smart]
tiers = {{simple = "other", medium = "fake", complex = "fake", reasoning = "fake"}}
"""


@dataclass(frozen=True)
class Row:
    """A name, and what it stands for. `goal`: is it judged?"""

    name: str
    title: str
    goal: bool = False


PLAIN: Final = Row("fake", "a model")
ROWS: Final = (
    PLAIN,
    Row("alias", "… by an alias"),
    Row("variant", "… by a variant", goal=True),
    Row("prompted", "… by one with a system prompt"),
    Row("route", "a route of two models", goal=True),
    Row("varied", "… with variants", goal=True),
    Row("route-variant", "… by its variant", goal=True),
    Row("members", "… of variants", goal=True),
    Row("weights", "… by weight", goal=True),
    Row("no-room", "… whose favourite has no room", goal=True),
    Row("affinity", "… with session affinity"),
    Row("smart", "… by tiers"),
    Row("remote", "a model elsewhere"),
)
STREAMED: Final = (PLAIN, *(row for row in ROWS if row.name in ("alias", "route", "route-variant", "remote")))


class Named(Accelerd):
    """With models and routes by all these names, and `remote` at the direct upstream."""

    def __init__(self, setup: Setup, upstream: Direct, more: int) -> None:
        super().__init__(setup)
        self._upstream, self._more = upstream, more

    def _config(self, home: Path) -> str:
        model = f'path = "{home}/model.gguf"\nbinary = "{self.setup.upstream}"\n'
        sizes = {"fake": "1MiB", "other": "1MiB", "huge": "100TiB"}
        sizes |= {f"more-{number}": "1MiB" for number in range(self._more)}
        models = [f'[models.{name}]\n{model}memory = "{size}"\nparallel = 1\n' for name, size in sizes.items()]
        models[0] += 'aliases = ["alias"]\n'
        (home / "key").write_text(KEY)
        (home / "key").chmod(0o600)
        remote = (
            f'[remotes.host]\nurl = "http://127.0.0.1:{self._upstream.port}/v1"\nkey_file = "{home}/key"\n'
            '[models.remote]\nengine = "remote"\nremote = "host"\nmodel = "fake"\ncapabilities = ["chat"]\n'
        )
        server = f'[server]\nlisten = ["127.0.0.1:{self.port}"]\n[engines.llama-server]\ntransport = "unix"\n'
        return "\n".join([server, *models, remote, NAMES])


class Bench:
    """The daemon, and what is asked of it."""

    def __init__(self, setup: Setup, more: int) -> None:
        self._setup = setup
        self._upstream = Direct(setup)
        self._daemon = Named(setup, self._upstream, more)

    def __enter__(self) -> Bench:
        self._upstream.start()
        self._daemon.start()
        self._load(PLAIN, 0.05, stream=False)
        self._load(Row("other", ""), 0.05, stream=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._daemon.stop()
        self._upstream.stop()

    def cost(self, row: Row, seconds: float, *, stream: bool) -> float:
        """Microseconds of CPU time for each request, or for each chunk of a stream."""
        own = [self._daemon.pid]
        before = usage.cpu_seconds(own)
        report = self._load(row, seconds, stream=stream)
        return (usage.cpu_seconds(own) - before) / report["requests"] * 1e6 / (CHUNKS if stream else 1)

    def _load(self, row: Row, seconds: float, *, stream: bool) -> dict[str, Any]:
        body: dict[str, object] = {"model": row.name, "messages": [{"role": "user", "content": PROMPT}], "seed": 1}
        if stream:
            body |= {"stream": True, "fake_chunks": CHUNKS, "fake_gap_us": GAP_US}
        chunks = CHUNKS if stream else 0
        argv = [self._setup.load, self._daemon.port, 1, seconds, chunks, 1, CHAT, KEY]
        with host.on_core(self._setup.cores.load):
            done = subprocess.run(
                list(map(str, argv)), input=json.dumps(body).encode(), capture_output=True, check=False
            )
        if done.returncode or (report := json.loads(done.stdout))["errors"] or not report["requests"]:
            raise BenchError(f"{row.name}: {done.stderr.decode().strip()}\n{self._daemon.output()}")
        return dict(report)


def measure(bench: Bench, rows: Sequence[Row], rounds: int, seconds: float, *, stream: bool) -> bool:
    """Print a table of the rows; False if one misses its goal."""
    found: dict[str, list[float]] = {row.name: [] for row in rows}
    for _ in range(rounds):
        for row in rows:
            found[row.name].append(bench.cost(row, seconds, stream=stream))
    reached = True
    for row in rows:
        own = min(found[row.name])
        more = own - min(found[PLAIN.name])
        verdict = ""
        if row.goal and not stream:
            verdict = "ok" if more <= GOAL else "MISS"
            reached = reached and more <= GOAL
        print(f"{row.title:34} {row.name:14} {own:7.1f} µs  {more:+6.1f} µs  {verdict}".rstrip())
    return reached


def chosen(rows: Sequence[Row], only: Sequence[str] | None) -> list[Row]:
    return [row for row in rows if only is None or row is PLAIN or row.name in only]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.names", description="what a name costs a request")
    parser.add_argument("--rounds", type=int, default=15, help="in each, all names take their turns")
    parser.add_argument("--seconds", type=float, default=0.15, help="for each name in a round")
    parser.add_argument("--only", nargs="*", help="names; else all")
    parser.add_argument("--models", type=int, default=0, help="so many more models are configured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="abench-") as scratch:
        setup = Setup(Path(scratch), build("upstream"), build("load"), host.choose_cores(), "unix", None)
        with Bench(setup, options.models) as bench:
            print(f"CPU for a request, and more than by the plain name; goal: at most {GOAL:.0f} µs more")
            reached = measure(bench, chosen(ROWS, options.only), options.rounds, options.seconds, stream=False)
            print("CPU for a chunk of a stream")
            measure(bench, chosen(STREAMED, options.only), options.rounds, options.seconds, stream=True)
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
