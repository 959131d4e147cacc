"""accelerd and the engine itself, side by side: what differs, and how often. See compare.py.

tests/compare/run [--cold] [NAME…]      # with --cold each request has to wait until its model is loaded
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
from pathlib import Path

from tests.compare.bodies import bodies
from tests.compare.compare import SLOTS, Pair, model_for, pair


async def compare(both: Pair, names: list[str], *, cold: bool) -> int:
    """Prints the differences; how many requests have some."""
    asked = different = 0
    for slots in SLOTS:
        for body in bodies():
            if names and not any(name in body.name for name in names):
                continue
            for stream in (False, True) if body.streams else (False,):
                if cold:
                    both.daemon.events(f"models/{model_for(body, slots)}/unload")
                asked += 1
                if found := await both.compare(body, slots, stream=stream):
                    different += 1
                    print(f"{body.name}, {slots} slots, {'stream' if stream else 'plain'}:", file=sys.stderr)
                    print(*(f"    {one}" for one in found), sep="\n", file=sys.stderr)
    print(f"{asked} requests, {different} with another answer", file=sys.stderr)
    return different


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/compare/run", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a part of the names of requests")
    parser.add_argument("--cold", action="store_true", help="unload the model before each request")
    args = parser.parse_args()
    program = os.environ.get("ACCELERD_TEST_LLAMA_SERVER", "llama-server")
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="acc-")))
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(directory / "output", "w"))))
        both = stack.enter_context(pair(directory, program))
        return 1 if asyncio.run(compare(both, args.names, cold=args.cold)) else 0


sys.exit(main())
