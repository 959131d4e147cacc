"""accelctl status: what is loaded, how much memory it uses and what is waiting, as a table."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from accelerd.base.causes import PERMANENT
from accelerd.base.names import accelctl
from accelerd.base.sizes import human_size
from accelerd.cli.context import Context, unknown_name
from accelerd.cli.live_page import LivePage
from accelerd.cli.output import CliOutput
from accelerd.cli.progress import amount, with_download
from accelerd.cli.text import count, errors_in, printable, span

HEAD = ("MODEL", "STATE", "MEMORY", "DEVICE", "IDLE", "QUEUE")
STATE_STYLES = {
    "ready": "green",
    "failed": "red",
    "backoff": "red",
    "stopped": "dim",
    "asleep": "dim",
}  # all others: yellow
LOG_PREFIX = re.compile(r"^[\d.]+ [A-Z] ")  # llama-server's clock and level
ERROR_LINE = re.compile(r"^[\d.]+ E |\berror\b", re.IGNORECASE)
LOOPBACK = ("127.0.0.1", "[::1]")
EVERYWHERE = ("0.0.0.0", "[::]")
MARKS = "¹²³⁴⁵⁶⁷⁸⁹"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="only this model, or the models of this route")
    parser.add_argument("--watch", action="store_true", help="refresh every second until Ctrl-C")


def run(context: Context, args: argparse.Namespace) -> int:
    def fetch() -> dict[str, Any]:
        status = context.client.get("status")
        if args.model:
            status["models"] = [m for m in status["models"] if meant(args.model, m, status.get("routes") or ())]
            if not status["models"]:
                raise unknown_name(context, args.model)
        return status

    def page(out: CliOutput, status: dict[str, Any]) -> None:
        show(out, status, named=bool(args.model))

    return LivePage(context, fetch, None, page).report(again=args.watch)


def show(out: CliOutput, status: dict[str, Any], *, named: bool) -> None:
    """`named`: a part of the models was asked for, so that totals of all do not belong to them."""
    models = status.get("models") or []
    problems = (status.get("config") or {}).get("problems") or []
    if errors := errors_in(problems):
        text = f"the configuration on disk has {count(errors, 'error')} and is not in use: accelctl config check"
        out.wrapped(text, indent="  ", first="! ", style="red")
    for problem in (one["problem"] for one in status.get("listeners") or () if one.get("problem")):
        out.wrapped(f"{problem}; accelerd tries again", indent="  ", first="! ", style="red")
    out.line(header(out, status, named=named))
    if urls := base_urls(status.get("listen") or ()):
        out.line(out.style(f"for clients: {', '.join(urls)}", "dim"))
    if status.get("yielded"):
        from accelerd.cli.time_of_day import yielded

        out.line(out.style(printable(yielded(status["yielded"])), "yellow"))
    if saving := (status.get("desktop") or {}).get("saving"):
        text = f"saving power ({saving}): models are loaded only on request and unloaded sooner"
        out.line(out.style(printable(text), "yellow"))
    if not models:
        out.line()
        out.line("No models yet. Add one: accelctl add FILE, or accelctl add hf:ORG/REPO")
        downloads(out, status)
        return
    out.line()
    notes: list[str] = []
    rows, styles = [], []
    for model in models:
        mark = ""
        for remark in footnotes(model):
            notes.append(remark)
            mark += sign(len(notes))
        rows.append(row(model, mark))
        styles.append(("bold", STATE_STYLES.get(model["state"], "yellow"), "", "", "", ""))
    out.table(HEAD, rows, styles)
    downloads(out, status)
    levels = [remark for entry in status.get("performance") or () for remark in level_remarks(entry)]
    levels += [f"{one.get('message')}: {one.get('fix')}" for one in status.get("hazards") or ()]
    if notes or levels or (problems and not errors):
        out.line()
    for number, note in enumerate(notes, 1):
        out.wrapped(note, indent="  ", first=f"{sign(number)} ")
    for remark in levels:
        out.wrapped(remark, indent="  ", first="! ", style="yellow")
    if problems and not errors:
        text = f"the configuration has {count(len(problems), 'warning')}: accelctl config check"
        out.wrapped(text, indent="  ", first="! ", style="yellow")


def downloads(out: CliOutput, status: dict[str, Any]) -> None:
    """The downloads under way that no model's row shows."""
    shown = {model["download"].get("file") for model in status.get("models") or () if model.get("download")}
    for one in status.get("downloads") or ():
        if one["file"] not in shown:
            facts = ", ".join(filter(None, (amount(with_download(one)), one["file"])))
            out.line(printable(f"downloading {one['source']}{': ' * bool(facts)}{facts}"))


def meant(name: str, model: dict[str, Any], routes: Sequence[dict[str, Any]]) -> bool:
    """Is it the model of that name, or one of the route of that name?"""
    if name in (model["name"], model.get("prefixed"), *(model.get("aliases") or ())):
        return True
    return any(route["name"] == name and model["name"] in route["models"] for route in routes)


def header(out: CliOutput, status: dict[str, Any], *, named: bool) -> str:
    """One line of totals: version, uptime, loaded models, memory, waiting requests; of `named` models nothing else."""
    scheduler = status.get("scheduler") or {}
    models = status.get("models") or []
    own = [m for m in models if not elsewhere(m)]
    loaded = sum(1 for m in own if m["state"] in ("ready", "draining"))
    parts = [f"up {span(status.get('uptime'))}"]
    if not named:
        parts.append(f"{loaded} of {len(own)} loaded")
        parts += [f"{len(models) - len(own)} elsewhere"] if len(own) < len(models) else []
        parts.append(share(sum(map(taken, models)), scheduler.get("memory_limit")))
        parts.append(f"{scheduler.get('queue') or 0} waiting")
    if status.get("state") not in (None, "running"):
        parts.insert(0, out.style(printable(str(status["state"])), "yellow"))
    return f"{out.style('accelerd', 'bold')} {printable(str(status.get('version', '?')))} · " + " · ".join(parts)


def base_urls(listen: Sequence[str]) -> list[str]:
    """What clients are given, "http://localhost:4000/v1"; once for an address and the same port of the other family."""
    pairs = [address.rpartition(":")[::2] for address in listen]
    own = machine_addresses() if any(host in EVERYWHERE for host, _ in pairs) else {}
    return list(
        dict.fromkeys(
            f"http://{name}:{port}/v1"
            for host, port in pairs
            for name in (["localhost", *own[host]] if host in own else ["localhost" if host in LOOPBACK else host])
        )
    )


def machine_addresses() -> dict[str, list[str]]:
    """By the host of a listener on all interfaces: the addresses by which other machines reach it."""
    import socket

    import psutil

    found: dict[str, list[str]] = {host: [] for host in EVERYWHERE}
    for address in (one for every in psutil.net_if_addrs().values() for one in every):
        if address.family == socket.AF_INET and not address.address.startswith("127."):
            found["0.0.0.0"].append(address.address)
        elif address.family == socket.AF_INET6 and address.address != "::1" and "%" not in address.address:
            found["[::]"].append(f"[{address.address}]")
    return found


def share(used: int | None, limit: int | None) -> str:
    """ "9.0 of 20.0 GiB"; the unit stands once where it is the same."""
    if not limit:
        return human_size(used)
    (number, unit), (total, total_unit) = human_size(used or 0).split(" "), human_size(limit).split(" ")
    return f"{number} of {total} {unit}" if unit == total_unit else f"{number} {unit} of {total} {total_unit}"


def row(model: dict[str, Any], mark: str) -> tuple[str, ...]:
    name = model["name"] + (" (pinned)" if model.get("pin") else "")
    state = "elsewhere" if elsewhere(model) and model["state"] == "ready" else model["state"]
    return name, state + mark, memory(model), device(model), idle(model), str(model.get("queue") or 0)


def elsewhere(model: dict[str, Any]) -> bool:
    """Does another machine have it? Then it is not loaded here, and is never asked to be."""
    return bool(model.get("engine") == "remote")


def taken(model: dict[str, Any]) -> int:
    """Bytes that were measured; what is reserved where nothing was measured."""
    held = model["state"] not in ("stopped", "downloading", "failed", "backoff")
    return int(model.get("memory_used") or (model.get("memory") if held else 0) or 0)


def memory(model: dict[str, Any]) -> str:
    """As `taken`; what is reserved is marked with "~"."""
    size = taken(model)
    return f"{'' if model.get('memory_used') else '~'}{human_size(size)}" if size else "-"


def device(model: dict[str, Any]) -> str:
    """ "cpu", or "gpu" or "npu" with its slot, less the domain that nearly every machine has."""
    name = str(model.get("device") or "-")
    kind = "npu" if any(claim.get("device") == name for claim in model.get("claims") or ()) else "gpu"
    return f"{kind} {name.removeprefix('0000:')}" if ":" in name else name


def idle(model: dict[str, Any]) -> str:
    """Running requests, how far its download is, or how long it has been idle, of how long before it is unloaded."""
    if model.get("leases"):
        return count(model["leases"], "request")
    if at := model.get("download"):
        share = f"{100 * at['bytes'] // at['total']} %" if at.get("total") else human_size(at["bytes"])
        return share + (f", {span(at['remaining'])} left" if at.get("remaining") is not None else "")
    if model["state"] == "backoff" and model.get("retry_in") is not None:
        return f"retry in {span(model['retry_in'])}"
    if model.get("idle") is None:
        return "-"
    limit = model.get("idle_timeout")
    return span(model["idle"]) + (f" of {span(limit)}" if limit is not None and not model.get("pin") else "")


def footnotes(model: dict[str, Any]) -> list[str]:
    """What a user must know about a model beyond its row."""
    notes = []
    name = model["name"]
    error = model.get("error")
    if error:
        line = telling(error.get("tail") or ())
        message = str(error.get("message") or "it failed")
        if line and line not in message:
            message += f': "{line}"'
        todo = accelctl("reset" if model["state"] == "failed" else "logs", name)
        if model["state"] == "failed" and error.get("cause") in PERMANENT:
            todo = f"once that is put right: {todo}"
        notes.append(f"{name}: {message} ({todo})")
    if model.get("residue"):
        notes.append(
            f"{name}: {human_size(model['residue'])} of its memory was not released by the device and stays reserved"
        )
    if model["state"] == "killing" and model.get("reason"):
        notes.append(f"{name}: {model['reason']}")
    if model.get("outdated"):
        notes.append(f"{name}: its configuration has changed; it restarts when its running requests have ended")
    return notes


def level_remarks(entry: dict[str, Any]) -> list[str]:
    """What is wrong with a device's performance level."""
    remarks = []
    if entry.get("stuck"):
        remarks.append(f"{entry['name']}: its clock is stuck low although it is busy")
    if entry.get("state") in ("hot", "yielded"):
        remarks.append(f"{entry['name']} is not at its highest clocks: {entry['reason']}")
    return remarks


def telling(tail: Sequence[str]) -> str:
    """The line that most likely names the cause: the first that is an error, else the last."""
    lines = [LOG_PREFIX.sub("", line).strip() for line in tail]
    errors = [line for raw, line in zip(tail, lines, strict=True) if ERROR_LINE.search(raw)]
    return (errors or lines[-1:] or [""])[0]


def sign(number: int) -> str:
    return MARKS[number - 1] if number <= len(MARKS) else f"[{number}]"
