"""Prints memory: a bar for each pool, below it a line for each user of it.

Takes the JSON of the control route. Each part of a bar starts with the letter of its line, so that it can be read
without colours; without block characters it is drawn in ASCII. Must never fail for a missing value.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from accelerd.base.sizes import human_size
from accelerd.cli.device_view import claim, places
from accelerd.cli.output import CliOutput
from accelerd.cli.text import clip, count, printable, span, width
from accelerd.cli.time_of_day import seconds_since, yielded

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVW"  # models; the same letter in every pool
MODEL_STYLES = ("cyan", "green", "blue", "magenta")
OTHERS, SPILLED, RESERVE, FREE = "o", "s", "x", "."
WIDEST = 78  # cells of a bar
NARROWEST = 10
WORDS = {
    "loading": "loading",
    "asleep": "asleep",
    "leaving": "leaving",
    "reclaiming": "ended, memory not yet released",
    "lost": "ended, memory not released by the device",
}
PHASE_STYLES = {"loading": "yellow", "leaving": "yellow", "reclaiming": "red", "lost": "red"}


class BarGlyphs(NamedTuple):
    used: str
    unused: str  # reserved, but not in use
    others: str
    spilled: str
    reserve: str
    free: str


BLOCK_GLYPHS = BarGlyphs("█", "▒", "░", "▚", "▁", "·")
ASCII_GLYPHS = BarGlyphs("#", "+", "/", "%", "x", ".")


@dataclass(frozen=True)
class BarPart:
    letter: str
    name: str
    size: int
    glyph: str
    style: str
    note: str = ""
    unused: int = 0  # of `size`


def show(out: CliOutput, answer: dict[str, Any]) -> None:
    if answer.get("source") == "direct":
        out.line(out.style("accelerd is not running: measured by accelctl, without model names", "dim"))
        out.line()
    pools = answer.get("pools") or []
    labels = {pool.get("id"): str(pool.get("label") or pool.get("id")) for pool in pools}
    letters = lettered(pools)
    for number, pool in enumerate(pools):
        if number:
            out.line()
        show_pool(out, pool, letters, spillers(pool, pools, labels))
    if not pools:
        out.line("nothing is known about this machine's memory")
    told = [*remarks(answer)]
    if told:
        out.line()
    for text, style in told:
        out.wrapped(text, indent="  ", first="! ", style=style)
    waiting = answer.get("waiting") or []
    if waiting:
        out.line()
        out.line(out.style("Waiting", "bold"))
    for entry in waiting:
        show_waiting(out, entry)


def lettered(pools: Sequence[dict[str, Any]]) -> dict[str, int]:
    """A number for each model, in the order in which they appear."""
    found: dict[str, int] = {}
    for pool in pools:
        for held in (*(pool.get("holdings") or ()), *((pool.get("npu") or {}).get("models") or ())):
            found.setdefault(str(held.get("model")), len(found))
    return found


def spillers(pool: dict[str, Any], pools: Sequence[dict[str, Any]], labels: dict[Any, str]) -> str:
    """The pools that spill into this one."""
    found = [other for other in pools if other.get("backed_by") == pool.get("id") and other.get("holdings")]
    return ", ".join(labels[other.get("id")] for other in found)


# --- one pool -------------------------------------------------------------------------------------------------


def show_pool(out: CliOutput, pool: dict[str, Any], letters: dict[str, int], spill: str) -> None:
    glyphs = BLOCK_GLYPHS if out.blocks else ASCII_GLYPHS
    capacity, free = pool.get("capacity") or 0, pool.get("free") or 0
    found = [*parts(pool, letters, spill, glyphs)]
    slot = str(pool.get("id") or "").removeprefix("0000:")
    where = f" ({slot})" if ":" in slot else ""
    state = f"{human_size(free)} free" if free >= 0 else f"{human_size(-free)} over the limit"
    figures = f"{state} of {human_size(capacity)}"
    title = cut(out, str(pool.get("label") or slot), max(8, out.columns - len(figures) - len(where) - 2))
    styled = out.style(figures, "red") if free < 0 else figures
    out.line(f"{out.style(title, 'bold')}{where}  {styled}")
    show_claims(out, pool, letters)
    if pool.get("backed_by") and not pool.get("own") and {part.letter for part in found} <= {FREE, RESERVE}:
        return  # it has no memory of its own, and uses nobody's
    cells = max(NARROWEST, min(WIDEST, out.columns - 2))
    out.line("  " + bar(out, found, max(capacity, sum(part.size for part in found)), cells, glyphs))
    rows(out, found)


def show_claims(out: CliOutput, pool: dict[str, Any], letters: dict[str, int]) -> None:
    """Of an NPU: its hardware contexts in use, the models that use them, and their memory, which is main memory."""
    told = pool.get("npu")
    if not told:
        return
    out.wrapped(places(told), indent="  ")
    for one in told.get("models") or ():
        number = letters.get(str(one.get("model")), 0)
        text = f"{cut(out, str(one.get('model')), 32)}  {claim(one)}, {human_size(one.get('memory'))} of memory in all"
        style = MODEL_STYLES[number % len(MODEL_STYLES)]
        out.wrapped(text, indent="    ", first=f"  {LETTERS[number % len(LETTERS)]} ", style=style)


def parts(pool: dict[str, Any], letters: dict[str, int], spill: str, glyphs: BarGlyphs) -> Iterator[BarPart]:
    """Everything in a pool, as it stands in the bar from the left to the right."""
    for held in pool.get("holdings") or ():
        yield holding(held, letters.get(str(held.get("model")), 0), glyphs)
    if pool.get("spilled"):
        note = f"in use by {spill or 'a GPU that shares this memory'}"
        yield BarPart(SPILLED, "spilled", pool["spilled"], glyphs.spilled, "cyan", note)
    if pool.get("foreign"):
        yield BarPart(OTHERS, "others", pool["foreign"], glyphs.others, "yellow", others(pool))
    if (free := pool.get("free") or 0) > 0:
        yield BarPart(FREE, "free", free, glyphs.free, "")
    if pool.get("reserve"):
        yield BarPart(RESERVE, "reserve", pool["reserve"], glyphs.reserve, "dim", "kept free of models")


def holding(held: dict[str, Any], number: int, glyphs: BarGlyphs) -> BarPart:
    reserved, used, phase = held.get("reserved") or 0, held.get("used"), str(held.get("phase"))
    notes = [WORDS[phase]] if phase in WORDS else []
    if used is None:
        notes.append("reserved, not in use yet" if phase == "loading" else "reserved")
    elif human_size(used) != human_size(reserved):
        notes.append(f"{human_size(used)} of it in use" if used < reserved else f"{human_size(used)} in use")
    if held.get("prompt_cache"):
        notes.append(f"{human_size(held['prompt_cache'])} of it for its prompt cache")
    if held.get("pin"):
        notes.append("pinned")
    if held.get("leases"):
        notes.append(count(held["leases"], "request"))
    elif held.get("idle") is not None:
        notes.append(f"idle for {span(held['idle'])}")
    letter = LETTERS[number % len(LETTERS)]
    style = PHASE_STYLES.get(phase, MODEL_STYLES[number % len(MODEL_STYLES)])
    unused = max(0, reserved - (used or 0))
    return BarPart(letter, str(held.get("model")), reserved, glyphs.used, style, ", ".join(notes), unused)


def others(pool: dict[str, Any]) -> str:
    """Programs by name, the largest first."""
    users = [user for user in pool.get("foreign_users") or () if user.get("size")]
    return ", ".join(f"{user.get('process')} {human_size(user['size'])}" for user in users)


def bar(out: CliOutput, found: Sequence[BarPart], capacity: int, cells: int, glyphs: BarGlyphs) -> str:
    text = ""
    for part, length in zip(found, shared([part.size for part in found], capacity, cells), strict=True):
        unused = min(round(length * part.unused / part.size), length - 1) if part.size else 0
        drawn = part.glyph * (length - unused) + glyphs.unused * unused
        if part.letter not in (FREE, RESERVE) and length:
            drawn = part.letter + drawn[1:]
        text += out.style(drawn, part.style)
    return text


def shared(sizes: Sequence[int], capacity: int, cells: int) -> list[int]:
    """Cells for each size: in proportion, at least one for what is not zero, `cells` in total at most."""
    if capacity <= 0:
        return [0] * len(sizes)
    exact = [size * cells / capacity for size in sizes]
    found = [max(1, int(share)) if size else 0 for size, share in zip(sizes, exact, strict=True)]
    while sum(found) > cells and max(found) > 1:
        found[found.index(max(found))] -= 1
    left = min(cells, round(sum(exact))) - sum(found)
    by_rest = sorted(range(len(sizes)), key=lambda i: found[i] - exact[i])
    for index in by_rest[: max(0, left)]:
        found[index] += 1 if sizes[index] else 0
    return found


def rows(out: CliOutput, found: Sequence[BarPart]) -> None:
    """The line of each part: letter, name, size, notes."""
    room = max(8, min(32, out.columns - 24))
    named = [(part, cut(out, part.name, room)) for part in found]
    widest = max((width(name) for _, name in named), default=0)
    for part, name in named:
        letter = part.glyph if part.letter in (FREE, RESERVE) else part.letter
        head = f"    {name}{' ' * (widest - width(name))}  {human_size(part.size):>9}"
        room = max(out.columns - width(head) - 2, 16)
        lines = textwrap.wrap(printable(part.note), room, break_long_words=False, break_on_hyphens=False) or [""]
        first = f"  {out.style(letter, part.style)} {head[4:]}"
        out.line(f"{first}  {out.style(lines[0], 'dim')}" if lines[0] else first)
        for line in lines[1:]:
            out.line(" " * (width(head) + 2) + out.style(line, "dim"))


def cut(out: CliOutput, text: str, columns: int) -> str:
    found = clip(printable(text), columns)
    return found if out.blocks else found.replace("…", "~")


# --- below ----------------------------------------------------------------------------------------------------


def remarks(answer: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a person must know beyond the pools, each with its style."""
    if answer.get("yielded"):
        yield yielded(answer["yielded"]), "yellow"
    some, full = (round((answer.get("stall") or {}).get(key) or 0.0, 1) for key in ("some", "full"))
    if some or full:
        together = f", all of them at once {full} %" if full else ""
        yield f"programs waited for memory {some} % of the last 10 s{together}", "red" if full else "yellow"
    if answer.get("degraded"):
        yield str(answer["degraded"]), "yellow"


def show_waiting(out: CliOutput, entry: dict[str, Any]) -> None:
    name, requests = printable(str(entry.get("model"))), count(entry.get("requests") or 0, "request")
    reason = "loading" if entry.get("state") == "starting" else str(entry.get("reason") or "")
    wanted = sum((entry.get("wanted") or {}).values())
    need = f" for {human_size(wanted)}" if wanted and entry.get("state") != "starting" else ""
    out.wrapped(f"{name}: {requests}{need}{': ' if reason else ''}{reason}", indent="    ", first="  ")


def show_learned(out: CliOutput, answer: dict[str, Any]) -> None:
    """What was measured of models."""
    entries = answer.get("learned") or []
    if not entries:
        out.line("Nothing yet: memory is measured each time a model is loaded.")
        return
    table = []
    for entry in entries:
        estimate, measured = figures(entry)
        need = entry.get("need")
        times = count(entry.get("shortages") or 0, "time")
        note = f"ran out of memory {times}; gets {human_size(need)}" if need else "-"
        ago = span(seconds_since(entry["at"])) if entry.get("at") else "-"
        devices = ", ".join(str(one).removeprefix("0000:") for one in entry.get("devices") or ()) or "processor"
        table.append((
            str(entry.get("model") or entry.get("file") or "?"), devices, human_size(estimate),
            human_size(measured) if measured else "-", difference(entry, estimate, measured), ago, note,
        ))  # fmt: skip
    head = ("MODEL", "ON", "ESTIMATE", "MEASURED", "OFF BY", "AGO", "NOTE")
    out.table(head, table, [("bold", "", "", "", "", "dim", "yellow")] * len(table))


def figures(entry: dict[str, Any]) -> tuple[int, int]:
    """Bytes that were estimated and measured of the devices that the model is on, or of main memory."""
    devices = set(entry.get("devices") or ())
    estimate, measured = (
        sum(size for pool, size in (entry.get(key) or {}).items() if not devices or pool in devices)
        for key in ("estimate", "measured")
    )
    return estimate, measured


def difference(entry: dict[str, Any], estimate: int, measured: int) -> str:
    """How far the estimate was off: "+2.1 %" is more than there was.

    Of main memory less proves nothing: pages count once they are touched.
    """
    if not estimate or not measured or (not entry.get("devices") and measured <= estimate):
        return "-"
    return f"{(estimate - measured) / measured * 100:+.1f} %"
