"""The manual pages of the two programs: accelctl(1) and accelerd(8), from their argument parsers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from accelerd.__main__ import command_line
from accelerd.base import names
from accelerd.cli import EXIT_STATUSES
from accelerd.paper.roff import Page, bold, escape, italic
from accelerd.paper.tree import Node, Option, Word, options_of

ENVIRONMENT: Final = {
    names.ENV_CONFIG: "Another configuration file than the usual one.",
    names.ENV_LOG_LEVEL: "How much accelerd says: debug, info, notice, warning or error.",
}
CTL_ENVIRONMENT: Final = {
    names.ENV_SOCKET: "The daemon's control socket, where it is not the usual one.",
    names.ENV_CONFIG: ENVIRONMENT[names.ENV_CONFIG],
    "NO_COLOR": "When it is set to anything: no colours.",
}
FILES: Final = {
    "$XDG_CONFIG_HOME/accelerd/accelerd.toml": "The configuration, by default in `~/.config`; see accelerd.toml(5).",
    "$XDG_CONFIG_HOME/accelerd/accelerd.toml.d/*.toml": "What is read after it; `accelctl add` writes here.",
    "$XDG_RUNTIME_DIR/accelerd/accelerd.sock": "The control socket: the same HTTP, and /accelerd/v1 for accelctl.",
    "$XDG_STATE_HOME/accelerd": "What accelerd remembers: measured memory, tuning; by default in `~/.local/state`.",
}
DAEMON: Final = (
    "accelerd runs local AI models in servers such as llama-server, shares the memory of the machine among them, and "
    "serves all of them on one OpenAI-compatible endpoint: http://localhost:4000/v1. A model is loaded when a request "
    "wants it and leaves when another needs its room.",
    "It runs as a service of one user, `accelerd.service`, which its socket, a call on the session bus to "
    "org.accelerd1, or the login starts. In a terminal it does the same. Everything but the options below is in the "
    "configuration.",
    "SIGHUP reads the configuration again, SIGTERM and SIGINT let requests finish and then end it; a second one does "
    "not wait. Models that live in units or containers of their own survive a restart of the service.",
)
DAEMON_STATUS: Final = {"0": "It ended as it was told to.", "1": "It cannot start.", "2": "Wrong usage.",
                        "78": "The configuration is wrong."}  # fmt: skip


def accelctl_page(root: Node) -> str:
    page = Page("accelctl", 1, "talk to accelerd, the daemon for local AI models")
    page.heading("SYNOPSIS")
    page.synopsis(
        f"{bold('accelctl')} [{bold('--socket')} {italic('PATH')}] [{bold('--json')}] {italic('COMMAND')} ..."
    )
    page.heading("DESCRIPTION")
    page.paragraph(
        "accelctl shows and changes what accelerd(8) does. What it shows, it shows as JSON too, with `--json`. Where "
        "the daemon is not needed (configuration, devices, whether a model fits) it works without one."
    )
    page.heading("OPTIONS")
    page.paragraph("These may stand before the command and after it.")
    _options(page, root.options)
    page.heading("COMMANDS")
    for command in root.children:
        _command(page, command)
    page.heading("EXIT STATUS")
    page.verbatim(EXIT_STATUSES.partition("\n")[2])
    _table(page, "ENVIRONMENT", CTL_ENVIRONMENT)
    _table(page, "FILES", FILES)
    _see_also(page, ("accelerd", 8), ("accelerd.toml", 5), ("busctl", 1), ("journalctl", 1))
    return page.text()


def accelerd_page() -> str:
    parser = command_line()
    page = Page("accelerd", 8, "the daemon for local AI models")
    options = options_of(parser, "")
    page.heading("SYNOPSIS")
    page.synopsis(" ".join([bold("accelerd"), *(f"[{_option(o, short=True)}]" for o in options)]))
    page.heading("DESCRIPTION")
    for text in DAEMON:
        page.paragraph(text)
    page.heading("OPTIONS")
    _options(page, options)
    _table(page, "EXIT STATUS", DAEMON_STATUS)
    _table(page, "ENVIRONMENT", ENVIRONMENT)
    _table(page, "FILES", FILES)
    _see_also(page, ("accelctl", 1), ("accelerd.toml", 5), ("systemctl", 1))
    return page.text()


def _command(page: Page, node: Node) -> None:
    page.subheading(_synopsis(node))
    page.paragraph(_sentence(node.help))
    for word, text in node.words:
        if text:
            page.item(italic(word.metavar), _sentence(text))
    _options(page, [option for option in node.options if not _shared(option)])
    if node.epilog:
        if "\n " in node.epilog:
            page.verbatim(node.epilog)
        else:
            page.paragraph(node.epilog)
    for child in node.children:
        _command(page, child)


def _synopsis(node: Node) -> str:
    parts = [bold(f"accelctl {node.path}")]
    done: set[int] = set()
    for option in node.options:
        if _shared(option) or option.group in done:
            continue
        if option.group:
            done.add(option.group)
            rivals = [_option(o, short=True) for o in node.options if o.group == option.group]
            parts.append(f"[{' | '.join(rivals)}]")
        else:
            parts.append(f"[{_option(option, short=True)}]")
    parts += [_word(word) for word, _ in node.words]
    parts += [italic("|".join(child.name for child in node.children))] if node.children else []
    return " ".join(parts)


def _word(word: Word) -> str:
    text = italic(word.metavar) + (" ..." if word.many else "")
    return f"[{text}]" if word.optional else text


def _options(page: Page, options: list[Option] | tuple[Option, ...]) -> None:
    for option in options:
        page.item(_option(option), _sentence(option.help))


def _option(option: Option, *, short: bool = False) -> str:
    shown = option.names[-1:] if short else option.names
    value = option.value
    text = ", ".join(map(bold, shown))
    if value is None:
        return text
    return f"{text} " + ("|".join(map(escape, value.choices)) if value.choices else italic(value.metavar))


def _shared(option: Option) -> bool:
    return bool({"--help", "--json", "--socket"} & set(option.names))


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", "?", "!")) else f"{text}."


def _table(page: Page, title: str, rows: Mapping[str, str]) -> None:
    page.heading(title)
    for name, text in rows.items():
        page.item(bold(name), text)


def _see_also(page: Page, *pages: tuple[str, int]) -> None:
    page.heading("SEE ALSO")
    page.synopsis(", ".join(f"{bold(name)}({section})" for name, section in pages))
