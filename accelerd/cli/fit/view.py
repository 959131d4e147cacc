"""Prints the answer of `accelctl fit`: the verdict in one line, what goes where, which contexts would fit.

Takes the command's own JSON; computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerd.base.sizes import human_size
from accelerd.cli.output import CliOutput
from accelerd.cli.text import printable


def show(out: CliOutput, answer: dict[str, Any], *, reserved: bool) -> None:
    """The whole page. `reserved`: the total is what the daemon or the user reserves, not the sum of the parts."""
    style = "green" if answer["now"] else "yellow" if answer["fits"] else "red"
    lines = textwrapped(printable(answer["verdict"]), out.columns)
    for line in lines:
        out.line(out.style(line, "bold", style))
    out.line()
    out.wrapped(described(answer), indent="  ", style="dim")
    out.line()
    show_parts(out, answer, reserved)
    if any(row["alone"] for row in answer["contexts"]):
        out.line()
        show_contexts(out, answer)
    notes = [*answer["notes"]]
    if answer["offers"]:
        notes.insert(0, answer["offers"])
    if notes:
        out.line()
    for note in notes:
        out.wrapped(note, indent="  ", first="! ")


def textwrapped(text: str, columns: int) -> Sequence[str]:
    import textwrap

    return textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False)


def described(answer: dict[str, Any]) -> str:
    """What the model is, and the settings it was estimated with."""
    model, used = answer["model"], answer["settings"]
    experts = f", {model['experts_used']} of {model['experts']} experts a token" if model["experts"] else ""
    kind = model["architecture"] or "unknown architecture"
    k, v = used["kv"]
    cache = "" if model["encoder"] else f", KV cache {k}" + (f" and {v}" if v != k else "")
    slots = f", {used['parallel']} requests at once" if used["parallel"] > 1 else ""
    context = "its full context" if not used["context"] else f"context {used['context']}"
    read = f"; {human_size(model['read'])} of {human_size(model['size'])} was read" if model["read"] is not None else ""
    return f"{model['name']}: {kind}{experts}, {human_size(model['size'])}{read}. With {context}{slots}{cache}."


def show_parts(out: CliOutput, answer: dict[str, Any], reserved: bool) -> None:
    """A row for each part of the model, a column for each pool."""
    pools = answer["pools"]
    head = ("", *(pool["label"] for pool in pools))
    names = list(dict.fromkeys(name for pool in pools for name in pool["parts"]))
    rows = [
        (name, *(human_size(pool["parts"][name]) if name in pool["parts"] else "-" for pool in pools)) for name in names
    ]
    styles = [("", *[""] * len(pools)) for _ in rows]
    total = "reserved" if reserved and names else "in total"
    rows.append((total, *(human_size(pool["amount"]) for pool in pools)))
    styles.append(("bold", *["bold"] * len(pools)))
    rows.append(("free", *(human_size(max(0, pool["free"])) if pool["free"] is not None else "?" for pool in pools)))
    styles.append(("", *["" if pool["free"] is None or pool["free"] >= pool["amount"] else "red" for pool in pools]))
    out.table(head, rows, styles)


def show_contexts(out: CliOutput, answer: dict[str, Any]) -> None:
    """The largest context for each type of the cache."""
    crowded = any(row["now"] != row["alone"] for row in answer["contexts"])
    head = ("KV CACHE", "LARGEST CONTEXT", *(("WITH ALL OTHERS UNLOADED",) if crowded else ()))
    rows = [
        (row["kv"], tokens(row["now"]), *((tokens(row["alone"]),) if crowded else ())) for row in answer["contexts"]
    ]
    out.table(head, rows)


def tokens(count: int) -> str:
    return str(count) if count else "none"
