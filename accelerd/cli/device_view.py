"""Prints devices: a line for each with its load, then its memory, the users of it, and what is wrong.

Takes the JSON of the control route, so that it is the same with and without a daemon. Must never fail for a missing
value.
"""

from __future__ import annotations

from typing import Any

from accelerd.base.sizes import human_size
from accelerd.cli.output import CliOutput
from accelerd.cli.text import count, printable

HEAD = ("DEVICE", "NAME", "DRIVER", "BUSY", "CLOCK", "POWER", "TEMP", "LEVEL")
BAR = 20  # characters
FULL, EMPTY = "█", "░"
MOST_HOLDERS = 6
ORDER = ("unified", "vram", "gtt", "ram")


def show(out: CliOutput, answer: dict[str, Any]) -> None:
    devices = answer.get("devices") or []
    if answer.get("source") == "direct":
        out.line(out.style("accelerd is not running: read by accelctl, without model names", "dim"))
        out.line()
    rows, styles = [], []
    for device in devices:
        rows.append(row(device))
        cool = "red" if device.get("problem") else "bold"
        styles.append((cool, "", "dim", "", "", "", heat(device), ""))
    out.table(HEAD, rows, styles)
    for device in devices:
        block(out, device)
    if answer.get("degraded"):
        out.line()
        out.wrapped(str(answer["degraded"]), indent="  ", first="! ", style="yellow")


def row(device: dict[str, Any]) -> tuple[str, ...]:
    seen = device.get("readings") or {}
    driver = str(device.get("driver") or "-")
    if device.get("gfx"):
        driver += f" {device['gfx']}"
    if seen.get("asleep"):
        return (short(device), str(device.get("name")), driver, "asleep", "-", "-", "-", "-")
    return (
        short(device),
        str(device.get("name")),
        driver,
        unit(seen, "busy", "%"),
        clock(seen),
        unit(seen, "power", "W"),
        unit(seen, "temperature", "°C"),
        level(device, seen),
    )


def short(device: dict[str, Any]) -> str:
    """ "gpu c1:00.0": kind and slot, without the domain that nearly every machine has."""
    slot = str(device.get("slot") or "").removeprefix("0000:")
    return f"{device.get('kind')} {slot}".strip()


def unit(seen: dict[str, Any], key: str, name: str) -> str:
    """A number with its unit, "~" where it is not of this moment."""
    value = seen.get(key)
    if value is None:
        return "-"
    stale = "~" if key in (seen.get("stale") or {}) else ""
    return f"{stale}{value:.0f} {name}"


def clock(seen: dict[str, Any]) -> str:
    """The main clock, of its highest step."""
    clocks = seen.get("clocks") or {}
    main = clocks.get("sclk") or clocks.get("npuclk") or {}
    now, most = main.get("now"), main.get("highest")
    if now is None and most is None:
        return "-"
    stale = "~" if "sclk" in (seen.get("stale") or {}) else ""
    shown = f"{stale}{now:.0f}" if now is not None else "-"
    return f"{shown} of {most:.0f} MHz" if most is not None else f"{shown} MHz"


def level(device: dict[str, Any], seen: dict[str, Any]) -> str:
    if not seen.get("level"):
        return "-"
    owner = device.get("level_owner")
    return str(seen["level"]) + (f" ({owner})" if owner else "")


def heat(device: dict[str, Any]) -> str:
    degrees = (device.get("readings") or {}).get("temperature")
    return "" if degrees is None or degrees < 85 else "yellow" if degrees < 95 else "red"


def block(out: CliOutput, device: dict[str, Any]) -> None:
    """One device: its pools, its users, its troubles."""
    pools = {pool["name"]: pool for pool in device.get("pools") or ()}
    troubles = list(device.get("troubles") or ())
    if device.get("problem"):
        troubles.insert(0, {"message": device["problem"], "fix": device.get("fix")})
    notes = remarks(device.get("readings") or {})
    if not (pools or troubles or notes or device.get("holders") or device.get("npu")):
        return
    out.line()
    out.line(f"{out.style(short(device), 'bold')}  {printable(str(device.get('name')))}")
    for name in ORDER:
        if name in pools:
            out.line(f"  {name:<8} {bar(out, pools[name])}")
    npu(out, device)
    users(out, device)
    for note in notes:
        out.wrapped(note, indent="    ", first="  ", style="dim")
    for trouble in troubles:
        out.wrapped(str(trouble.get("message")), indent="    ", first="  ! ", style="yellow")
        if trouble.get("fix"):
            # whole: it is there to be copied
            out.line(f"    {out.style('→', 'cyan')} {printable(str(trouble['fix']))}")


def npu(out: CliOutput, device: dict[str, Any]) -> None:
    """The places on an NPU, and who has them."""
    told = device.get("npu")
    if not told:
        return
    out.wrapped(places(told), indent="    ")
    rows = [(str(one.get("model")), claim(one), memory_of(one)) for one in told.get("models") or ()]
    longest = max((len(name) for name, _, _ in rows), default=0)
    for name, what, held in rows:
        out.wrapped(f"{name:<{longest}}  {what}, {held}", indent="      ", first="    ", style="cyan")


def places(told: dict[str, Any]) -> str:
    """ "2 of 16 hardware contexts in use, 8 columns shared by all models"."""
    used, most = told.get("contexts_used") or 0, told.get("contexts")
    text = f"{used} of {most} hardware contexts in use" if most else f"{count(used, 'hardware context')} in use"
    columns = told.get("columns")
    return f"{text}, {count(columns, 'column')} shared by all models" if columns else text


def claim(one: dict[str, Any]) -> str:
    """ "flm llm in Lemonade server, 1 context"."""
    host = f" in {one['host']}" if one.get("host") else ""
    return f"{one.get('family')} {one.get('kind')}{host}, {count(one.get('contexts') or 0, 'context')}"


def memory_of(one: dict[str, Any]) -> str:
    if one.get("memory_used") is not None:
        return f"{human_size(one['memory_used'])} of memory in use"
    return f"{human_size(one.get('memory'))} of memory reserved"


def bar(out: CliOutput, pool: dict[str, Any]) -> str:
    """ "██████░░░░ 29.6 GiB of 106 GiB"."""
    total, used = pool.get("total") or 0, pool.get("used")
    if used is None or not total:
        return f"{out.style(EMPTY * BAR, 'dim')}  {human_size(total)}"
    share = min(1.0, used / total)
    full = max(round(share * BAR), 1 if used else 0)
    colour = "red" if share > 0.95 else "yellow" if share > 0.85 else "green"
    drawn = out.style(FULL * full, colour) + out.style(EMPTY * (BAR - full), "dim")
    return f"{drawn}  {human_size(used)} of {human_size(total)}"


def users(out: CliOutput, device: dict[str, Any]) -> None:
    """Who holds its memory, the largest first."""
    holders = [holder for holder in device.get("holders") or () if holder.get("total")]
    lines = []
    for holder in holders[:MOST_HOLDERS]:
        process = f"{holder.get('process')} ({holder.get('pid')})"
        model = holder.get("model")
        lines.append((f"{model}: {process}" if model else process, holder["total"], bool(model)))
    rest = holders[MOST_HOLDERS:]
    if rest:
        lines.append((count(len(rest), "more process", "more processes"), sum(h["total"] for h in rest), False))
    if device.get("others"):
        lines.append(("other programs and the system", device["others"], False))
    if lines:
        longest = max(len(text) for text, _, _ in lines)
        for text, held, ours in lines:
            out.line(f"    {out.style(printable(f'{text:<{longest}}'), 'cyan' if ours else '')}  {human_size(held)}")


def remarks(seen: dict[str, Any]) -> list[str]:
    notes = []
    if seen.get("throttling"):
        notes.append(f"clocks are throttled by: {', '.join(seen['throttling'])}")
    if seen.get("dram_read") is not None and seen.get("dram_write") is not None:
        notes.append(f"memory traffic: {seen['dram_read'] / 1e9:.1f} GB/s read, {seen['dram_write'] / 1e9:.1f} written")
    other = {name: step for name, step in (seen.get("clocks") or {}).items() if name in ("mclk", "fclk")}
    clocks = [f"{name} {step['now']:.0f} MHz" for name, step in other.items() if step.get("now") is not None]
    if clocks:
        notes.append(", ".join(clocks))
    for name, reason in (seen.get("reasons") or {}).items():
        if name == "busy":
            continue  # the column says enough
        notes.append(f"not known: {reason}" if name == "all" else f"{name}: {reason}")
    return notes
