"""accelctl explain: a model's final command line, why each part is there, whether it fits, what happened to it.

Of a route: its models in their order, which of them would answer now, and why. Of a variant of either: what it does to
requests, too.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from accelerd.base.sizes import human_size
from accelerd.cli.context import Context
from accelerd.cli.failure import ExitStatus
from accelerd.cli.text import count, printable, span


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model, a route, or a variant of one")
    parser.add_argument("--prompt", metavar="TEXT", help="of a route with tiers: which of them this message would get")


def run(context: Context, args: argparse.Namespace) -> int:
    answer = context.client.get("explain", model=args.model, prompt=args.prompt)
    out = context.out
    out.result(answer)
    meant = str(answer.get("route") or answer.get("model", args.model))
    variant = answer.get("variant")
    if variant:
        name = f"{args.model} is " if variant["name"] == args.model else f"{args.model} is {variant['name']}, "
        out.line(printable(f"{name}a variant of {meant}"))
        show_variant(context, variant)
        out.line()
    elif meant != args.model:
        out.line(printable(f"{args.model} is answered by {meant}"))
    if "route" in answer:
        return explain_route(context, answer)
    model = out.style(str(answer.get("model", args.model)), "bold")
    out.line(f"{model} is {answer.get('state', 'unknown')}{lives(answer)}")
    if answer.get("command"):
        section(context, "Command")
        out.wrapped(str(answer["command"]), indent="    ", first="  ")
    section(context, "Why")
    for flag in answer.get("flags") or ():
        show_flag(context, flag)
    placement = answer.get("placement") or {}
    if placement:
        section(context, "Memory")
        word = "; it does not fit" if placement.get("fits") is False else ""
        size, source = human_size(placement.get("memory")), placement.get("source") or "unknown"
        out.wrapped(f"{size} ({source}){word}", indent="  ")
        cache = {"prompt cache": placement["prompt_cache"]} if placement.get("prompt_cache") else {}
        parts = sorted(({**(placement.get("parts") or {}), **cache}).items(), key=lambda part: -part[1])
        if parts:
            out.wrapped(f"of it {', '.join(f'{human_size(bytes)} for {name}' for name, bytes in parts)}", indent="  ")
        for claim in placement.get("claims") or ():
            out.wrapped(place(claim), indent="  ")
        if placement.get("reason"):
            out.wrapped(str(placement["reason"]), indent="  ")
    show_names(context, answer.get("variants") or [])
    if answer.get("warnings"):
        section(context, "Warnings")
    for warning in answer.get("warnings") or ():
        out.wrapped(str(warning), indent="    ", first="  ! ", style="yellow")
    if answer.get("history"):
        section(context, "History")
    for change in answer.get("history") or ():
        ago = f"{span(change.get('ago'))} ago"
        out.wrapped(f"{ago:<16}{change.get('from')} → {change.get('to')}: {change.get('reason') or ''}", indent="  ")
    return ExitStatus.OK


def explain_route(context: Context, answer: dict[str, Any]) -> int:
    """Which model would answer, then all of them in their order."""
    out = context.out
    name = out.style(str(answer["route"]), "bold")
    by = f", by {', '.join(map(printable, answer['by_variants']))}" if answer.get("by_variants") else ""
    out.line(f"{name} is a route; a request now goes to {out.style(str(answer.get('answers')), 'bold')}{by}")
    out.wrapped(str(answer.get("reason") or ""), indent="  ")
    if answer.get("complexity"):
        show_complexity(context, answer["complexity"])
    section(context, "Order")
    for number, model in enumerate(answer.get("models") or (), 1):
        text = f"{model['model']} {model.get('why') or ''}{costs(model.get('price') or {})}"
        out.wrapped(text, indent="     ", first=f"  {number}. ")
    show_names(context, answer.get("variants") or [])
    return ExitStatus.OK


def show_names(context: Context, variants: list[dict[str, Any]]) -> None:
    """Of a model's or a route's variants."""
    if not variants:
        return
    section(context, "Variants")
    for one in variants:
        names = ", ".join([one["name"], *one.get("aliases", ())])
        hidden = ", hidden" if one.get("hidden") else ""
        description = f": {one['description']}" if one.get("description") else ""
        context.out.wrapped(f"{names}{hidden}{description}", indent="    ", first="  ")


def show_variant(context: Context, variant: dict[str, Any]) -> None:
    """What it does to a request, in the order in which it does that."""
    out = context.out
    if variant.get("description"):
        out.wrapped(str(variant["description"]), indent="  ")
    for edit in variant.get("edits") or ():
        value = "" if edit["kind"] == "remove" else f" = {json.dumps(edit['value'], ensure_ascii=False)}"
        out.wrapped(f"{edit['kind']} {edit['field']}{value}", indent="      ", first="  ")
        out.wrapped(f"[{edit['source']}]", indent="      ", style="dim")
    if system := variant.get("system"):
        place = "instead of" if system["mode"] == "instead" else "before"
        size = count(system["characters"], "character")
        out.wrapped(f"a system prompt of {size} {place} the client's", indent="      ", first="  ")
        out.wrapped(f"[{system['source']}]", indent="      ", style="dim")
    hidden = "; it is hidden: GET /v1/models does not have it" if variant.get("hidden") else ""
    protected = " and ".join(variant.get("protected") or ())
    out.wrapped(f"{protected} stay as the client has written them{hidden}", indent="    ", first="  ")


def costs(price: dict[str, float]) -> str:
    """Of a million tokens; nothing where no price is configured."""
    return f"; costs {price['input']:g} for a million tokens in, {price['output']:g} out" if price else ""


def show_complexity(context: Context, complexity: dict[str, Any]) -> None:
    """The tier, then what the score is the sum of."""
    out = context.out
    section(context, "Complexity")
    decided = f"keyword {complexity['keyword']}" if complexity.get("keyword") else str(complexity.get("cause") or "")
    tier = out.style(str(complexity.get("tier")), "bold")
    out.line(f"  {tier} by {decided}; the score is {complexity.get('score', 0):.2f}")
    for part in complexity.get("dimensions") or ():
        if part.get("score"):
            found = f" ({', '.join(map(printable, part['found']))})" if part.get("found") else ""
            out.wrapped(f"{part['score'] * part['weight']:+.3f}  {part['name']}{found}", indent="    ")


def lives(answer: dict[str, Any]) -> str:
    """ ", process 4712 in toolbox llama"; nothing when it has no process."""
    if not answer.get("pid"):
        return ""
    home, place = str(answer.get("home") or ""), str(answer.get("place") or "")
    words = {"systemd": "unit", "child": "", "container": "container"}.get(home, home)
    return f", process {answer['pid']}" + (f" in {f'{words} {place}'.strip()}" if place else "")


def place(claim: dict[str, Any]) -> str:
    """ "1 of 16 hardware contexts of RyzenAI-npu5, as flm llm"."""
    host = f" in {claim['host']}" if claim.get("host") else ""
    several = count(claim.get("contexts") or 0, "hardware context")
    taken = f"{claim.get('contexts')} of {claim['of']} hardware contexts" if claim.get("of") else several
    return f"{taken} of {claim.get('label')}, as {claim.get('family')} {claim.get('kind')}{host}"


def section(context: Context, title: str) -> None:
    context.out.line()
    context.out.line(context.out.style(title, "dim"))


def show_flag(context: Context, flag: dict[str, Any]) -> None:
    """The flag on a line, its reason and source below it, then what rules have to say."""
    context.out.wrapped(str(flag.get("text")), indent="      ", first="  ")
    context.out.wrapped(f"{flag.get('reason')} [{flag.get('source')}]", indent="      ", style="dim")
    if flag.get("note"):
        context.out.wrapped(str(flag["note"]), indent="      ", style="dim")
