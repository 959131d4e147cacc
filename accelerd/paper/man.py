"""The manual pages of the two programs: accelctl(1) and accelerd(8), from their argument parsers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from accelerd.__main__ import command_line
from accelerd.base import names
from accelerd.cli import EXIT_STATUSES
from accelerd.paper.command_tree import Node, Option, Word, options_of
from accelerd.paper.roff import Page, bold, escape, italic

ENVIRONMENT: Final = {
    names.ENV_CONFIG: "The configuration file, instead of the default one.",
    names.ENV_LOG_LEVEL: "The least severe messages to log: debug, info, notice, warning or error.",
}
CTL_ENVIRONMENT: Final = {
    names.ENV_SOCKET: "The daemon's control socket, instead of the default one.",
    names.ENV_CONFIG: ENVIRONMENT[names.ENV_CONFIG],
    "NO_COLOR": "If set to anything but the empty string, no colours are used.",
}
FILES: Final = {
    "$XDG_CONFIG_HOME/accelerd/accelerd.toml": "The configuration, by default in `~/.config`; see accelerd.toml(5).",
    "$XDG_CONFIG_HOME/accelerd/accelerd.toml.d/*.toml": "Drop-ins, read after it; `accelctl add` writes them.",
    "$XDG_RUNTIME_DIR/accelerd/accelerd.sock": "The control socket: HTTP with /v1, and /accelerd/v1 for accelctl.",
    "$XDG_STATE_HOME/accelerd": "State kept across restarts, such as measured memory; default: `~/.local/state`.",
}
DAEMON: Final = (
    "accelerd runs local AI models in servers such as llama-server, shares the memory of the machine among them, and "
    "serves all of them on one OpenAI-compatible endpoint: http://localhost:4000/v1. A model is loaded when a request "
    "needs it and unloaded when another needs its memory.",
    "It runs as a systemd service of one user, `accelerd.service`, started by a connection to its socket, by a call to "
    "org.accelerd1 on the session bus, or at login. It can also be run in a terminal. Everything but the options below "
    "is set in the configuration.",
    "SIGHUP reloads the configuration. SIGTERM and SIGINT end accelerd when its requests have finished; a second one "
    "ends it at once. Models that live in units or containers of their own survive a restart of the service.",
)
DAEMON_STATUS: Final = {"0": "It was stopped.", "1": "It failed to start.", "2": "Wrong usage.",
                        "78": "The configuration is not valid."}  # fmt: skip


def accelctl_page(root: Node) -> str:
    page = Page("accelctl", 1, "control accelerd, the daemon for local AI models")
    page.heading("SYNOPSIS")
    page.synopsis(
        f"{bold('accelctl')} [{bold('--socket')} {italic('PATH')}] [{bold('--json')}] {italic('COMMAND')} ..."
    )
    page.heading("DESCRIPTION")
    page.paragraph(
        "accelctl controls accelerd(8) over its control socket; where systemd listens on that socket, accelctl starts "
        "accelerd. With `--json` every command prints JSON. Commands that do not need the daemon (configuration, "
        "devices, whether a model fits) work without it."
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
    options = options_of(parser)
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
