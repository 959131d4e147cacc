"""Runs the clients against llama-server itself and through accelerd, and prints in what they differ.

`tests/clients/run` prepares what they need and calls this. The exit status is the number of differences, 100 at most.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path

from tests.clients.agents import AGENTS, PROXIES, Agent, Place
from tests.clients.compare import Result, differences, table, told
from tests.clients.targets import AGENT_CONTEXT, SLOTS, Pair, Target, pair, translated

SUITES = Path(__file__).parent / "suites"
SDKS = ["openai", "anthropic", "langchain", "llama_index", "pydantic_ai", "litellm", "llama_vim", "dialects"]
DIALECTS = "dialects"  # of these, the suite whose engines have one API only
NPM = ["openai", "vercel", "langchain"]
LIMIT = 600  # s for one suite


def environment(home: Path, programs: str = "", **more: str) -> dict[str, str]:
    """A home of its own and nothing of the caller's: no key, no settings. What is no address here is not reached."""
    nowhere = "http://127.0.0.1:9"
    proxies = dict.fromkeys(PROXIES, nowhere)
    path = f"{programs}:{os.environ['PATH']}" if programs else os.environ["PATH"]
    own = {
        "PATH": path,
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1",
    }
    return {**proxies, **own, **more}


def suite(name: str, command: list[str], targets: list[Target], home: Path) -> Iterator[Result]:
    """The results of one suite at all targets, as they come."""
    env = environment(home, CLIENT_TARGETS=json.dumps([one.json() for one in targets]), PYTHONDONTWRITEBYTECODE="1")
    with open(home / f"{name.replace(' ', '-')}.err", "w+b") as errors:
        done = subprocess.run(
            command, env=env, cwd=SUITES, stdout=subprocess.PIPE, stderr=errors, timeout=LIMIT, check=False
        )
        count = 0
        for line in done.stdout.splitlines():
            if line.startswith(b'{"target"'):
                told = json.loads(line)
                count += 1
                yield Result(name, told["check"], told["target"], told["ok"], told.get("seen"), told.get("says", ""))
        if done.returncode or not count:
            errors.seek(0)
            tail = errors.read().decode(errors="replace").strip().splitlines()[-12:]
            raise SystemExit(f"error: {name} did not come to its end (status {done.returncode}):\n" + "\n".join(tail))


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    """What is run for each suite of a package."""
    found = {}
    if args.sdk:
        found |= {name: [str(args.python), str(SUITES / f"sdk_{name}.py")] for name in SDKS}
    if args.npm:
        for file in SUITES.glob("*.mjs"):
            shutil.copy(file, args.npm)  # packages are looked for beside and above a module
        found |= {f"{name} (js)": [str(node(args.npm)), str(args.npm / f"{name}.mjs")] for name in NPM}
    return {name: command for name, command in found.items() if chosen(name, args)}


def chosen(name: str, args: argparse.Namespace) -> bool:
    return not args.only or name in args.only or name.split()[0] in args.only


def node(modules: Path) -> Path:
    """The one that came with the packages, which want a newer one than many systems have."""
    return next(modules.glob("node_modules/node-linux-*/bin/node"), Path("node"))


def run_agents(agents: list[Agent], one: Pair, directory: Path, args: argparse.Namespace) -> Iterator[Result]:
    for agent in agents:
        print(f"  {agent.name}", file=sys.stderr, flush=True)
        for target in one.targets():
            home = Path(tempfile.mkdtemp(dir=directory))
            if target.cold:
                urllib.request.urlopen(target.cold, timeout=60).close()
            place = Place(home, args.agents, args.python.parents[1], args.aider)
            yield agent.run(place, target, environment(home, str(node(args.agents).parent)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/clients/run", description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="the Python that has the clients' packages")
    parser.add_argument("--sdk", action="store_true", help="packages of Python")
    parser.add_argument("--npm", type=Path, help="packages of npm, which are in this folder")
    parser.add_argument("--agents", type=Path, help="programs that work with a model, in this folder")
    parser.add_argument("--aider", type=Path, help="the environment that has aider")
    parser.add_argument("--only", action="append", help="this client alone; may be repeated")
    parser.add_argument("--json", type=Path, help="write all results there")
    parser.add_argument("--cache", type=Path, required=True, help="where models are kept")
    args = parser.parse_args()
    program = os.environ["ACCELERD_TEST_LLAMA_SERVER"]
    results: list[Result] = []
    names: list[str] = []
    compared: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="clients-", dir="/var/tmp") as scratch, ExitStack() as stack:
        stack.enter_context(redirect_stdout(StringIO()))  # what daemons print is for tests that fail
        directory = Path(scratch)
        wanted = commands(args)
        dialects = wanted.pop(DIALECTS, None)
        agents = [one for one in AGENTS if args.agents and chosen(one.name, args)]
        pairs = [stack.enter_context(pair(program, directory / str(n), args.cache, n)) for n in SLOTS if wanted]
        for name, command in wanted.items():
            print(f"  {name}", file=sys.stderr, flush=True)
            home = Path(tempfile.mkdtemp(dir=directory))
            results += suite(name, command, [target for one in pairs for target in one.targets()], home)
        if dialects is not None:
            print(f"  {DIALECTS}", file=sys.stderr, flush=True)
            home = Path(tempfile.mkdtemp(dir=directory))
            three = stack.enter_context(translated(program, directory / DIALECTS, args.cache))
            results += suite(DIALECTS, dialects, list(three), home)
            names += [target.name for target in three]
            direct, chat, messages = names
            compared += [(direct, chat), (direct, messages), (chat, messages)]
        if agents:
            for slots in SLOTS:
                with pair(program, directory / f"agents-{slots}", args.cache, slots, AGENT_CONTEXT, calls=False) as one:
                    pairs.append(one)
                    results += run_agents(agents, one, directory, args)
        for one in pairs:
            names += [target.name for target in one.targets()]
            compared += [(one.direct.name, one.cold.name), (one.direct.name, one.warm.name)]
    names = list(dict.fromkeys(names))  # agents have the same
    found = differences(results, dict.fromkeys(compared))
    if args.json:
        args.json.write_text("\n".join(json.dumps(vars(one), default=str) for one in results) + "\n")
    print(table(results, names, found))
    if found:
        print(f"\n{told(found)}")
    print(f"\n{len(found)} differences in {len(results)} results")
    return min(len(found), 100)


if __name__ == "__main__":
    sys.exit(main())
