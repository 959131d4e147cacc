"""`python -m tests.bench`: accelerd beside direct, nginx, llama-swap and LiteLLM, with the goals beside the results."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from . import host, report
from .contenders import Setup
from .native import BenchError, build
from .rounds import FULL, QUICK, Bench, Plan

CONTENDERS = ("direct", "nginx", "accelerd", "llama-swap", "litellm")
NGINX_PLACES = ("/usr/sbin/nginx", "/usr/local/sbin/nginx")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/bench/run", description="accelerd beside others, in one run")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="about 25 seconds instead of 4 minutes; only large differences mean anything",
    )
    parser.add_argument("--rounds", type=int, help="rounds over all rows (at least 1)")
    parser.add_argument("--seconds", type=float, help="seconds per sample")
    parser.add_argument("--idle", type=float, help="seconds of watching at rest, twice")
    parser.add_argument("--without-nginx", action="store_true")
    parser.add_argument("--without-accelerd", action="store_true")
    parser.add_argument("--nginx", metavar="PATH", help="the nginx to use; default: the installed one")
    parser.add_argument("--llama-swap", metavar="PATH", help="also measure this llama-swap")
    parser.add_argument("--litellm", metavar="PATH", help="also measure this LiteLLM (its `litellm` program)")
    parser.add_argument("--python", metavar="PATH", default=sys.executable, help="the interpreter that runs accelerd")
    parser.add_argument("--transport", choices=("unix", "tcp"), default="unix", help="between a proxy and the upstream")
    parser.add_argument("--no-nice", action="store_true", help="leave priorities alone")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write everything there")
    options = parser.parse_args(argv)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def find_nginx(given: str | None, places: tuple[str, ...] = NGINX_PLACES) -> Path:
    """The nginx to measure: the one given, on the PATH, or where distributions put it; raises BenchError."""
    found = given or shutil.which("nginx") or next((place for place in places if os.access(place, os.X_OK)), None)
    if found is None:
        raise BenchError(
            "cannot find nginx, which accelerd is measured against: install it (apt install nginx-light, dnf install "
            "nginx; it need not run), name it with --nginx PATH, or leave it out with --without-nginx"
        )
    return Path(found).resolve()


def program(given: str | None) -> Path | None:
    """A contender's program; raises BenchError when it cannot be run. A virtual environment's link is not resolved."""
    if given is not None and not os.access(given, os.X_OK):
        raise BenchError(f"cannot run {given}")
    return Path(given).absolute() if given is not None else None


def measure(options: argparse.Namespace) -> int:
    """One run; 0 unless a contender failed requests."""
    base = QUICK if options.quick else FULL
    plan = Plan(
        rounds=options.rounds or base.rounds,
        seconds=options.seconds or base.seconds,
        idle=options.idle or base.idle,
    )
    left_out = {"nginx"} if options.without_nginx else set()
    left_out |= {"accelerd"} if options.without_accelerd else set()
    left_out |= {"llama-swap"} if options.llama_swap is None else set()
    left_out |= {"litellm"} if options.litellm is None else set()
    names = tuple(name for name in CONTENDERS if name not in left_out)
    nginx = find_nginx(options.nginx) if "nginx" in names else None
    favoured = not options.no_nice and host.favour(os.getpid())
    cores = host.choose_cores()
    with tempfile.TemporaryDirectory(prefix="abench-") as scratch:
        setup = Setup(
            scratch=Path(scratch),
            upstream=build("upstream"),
            load=build("load"),
            cores=cores,
            transport=options.transport,
            nginx=nginx,
            llama_swap=program(options.llama_swap),
            litellm=program(options.litellm),
            python=options.python,
            favoured=favoured,
        )
        environment: dict[str, object] = {
            **host.describe(),
            "cores": str(cores),
            "priority": f"nice {host.NICE} (with autogroup where there is one)" if favoured else "ordinary",
            "upstream": f"{options.transport} socket to the fake engine",
            "plan": f"{plan.rounds} rounds of {plan.seconds:g} s per sample, contenders in turns",
        }
        for key, value in environment.items():
            print(f"{key:>9}  {value}", flush=True)
        results = Bench(setup, plan, names, lambda text: print(f"... {text}", file=sys.stderr, flush=True)).run()
    print(
        f"    noise  others used {results.foreign:.0%} of the measuring cores"
        if cores.all()
        else "    noise  not known"
    )
    print("\nmedian (best) of the rounds\n")
    print(report.table(results))
    for problem in results.problems:
        print(f"FAILED  {problem}")
    if options.json:
        options.json.write_text(json.dumps(report.as_json(results, environment), indent=1) + "\n")
    return 1 if results.problems else 0


def main(argv: list[str] | None = None) -> int:
    try:
        return measure(parse(sys.argv[1:] if argv is None else argv))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
