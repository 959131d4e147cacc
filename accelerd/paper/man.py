"""The manual pages: accelctl(1) and accelerd(8) from their argument parsers, accelerd.toml(5) from the schema."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import Final

from accelerd.__main__ import command_line
from accelerd.base import names
from accelerd.cli import COMMANDS, EXIT_STATUSES, command_parser, overview
from accelerd.config.reference import INTRODUCTION, TERMS, tables
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
CONFIG_FILES: Final = {
    "~/.config/accelerd/accelerd.toml": "Your own file; accelerd never changes it.",
    "~/.config/accelerd/accelerd.toml.d/*.toml": "Drop-ins, read after it in the order of their names.",
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
SHARED: Final = frozenset({"--help", "--json", "--socket"})  # options that every command has
DAEMON_STATUS: Final = {"0": "It was stopped.", "1": "It failed to start.", "2": "Wrong usage.",
                        "78": "The configuration is not valid."}  # fmt: skip


def accelctl_page() -> str:
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
    _options(page, overview()._actions)
    page.heading("COMMANDS")
    for name, text in COMMANDS.items():
        _command(page, command_parser(name)[1], text)
    page.heading("EXIT STATUS")
    page.verbatim(EXIT_STATUSES.partition("\n")[2])
    _table(page, "ENVIRONMENT", CTL_ENVIRONMENT)
    _table(page, "FILES", FILES)
    _see_also(page, ("accelerd", 8), ("accelerd.toml", 5), ("busctl", 1), ("journalctl", 1))
    return page.text()


def accelerd_page() -> str:
    options = command_line()._actions
    page = Page("accelerd", 8, "the daemon for local AI models")
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


def config_page() -> str:
    page = Page("accelerd.toml", 5, "the configuration of accelerd")
    page.heading("DESCRIPTION")
    before, _, rest = INTRODUCTION.partition("```toml\n")
    example = rest.partition("```")[0]
    for text in before.split("\n\n")[1:]:  # without its heading
        if text.strip():
            page.paragraph(text)
    page.verbatim(example)
    for line in TERMS.strip().splitlines():
        page.paragraph(line)
    for title, rows in tables():
        page.heading(title)
        for key, takes, default, meaning in rows:
            page.item(bold(key), meaning, f"Type: {takes}." + (f" Default: `{default}`." if default else ""))
    _table(page, "FILES", CONFIG_FILES)
    _see_also(page, ("accelctl", 1), ("accelerd", 8))
    return page.text()


def _command(page: Page, parser: argparse.ArgumentParser, text: str) -> None:
    """A command, then the commands of it."""
    page.subheading(_synopsis(parser))
    page.paragraph(_sentence(text))
    own = [action for action in parser._actions if not SHARED & {*action.option_strings}]
    for action in own:
        if action.help and not action.option_strings:
            page.item(italic(_metavar(action)), _sentence(action.help))
    _options(page, own)
    if parser.epilog:
        (page.verbatim if "\n " in parser.epilog else page.paragraph)(parser.epilog)
    for action in own:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                _command(page, action.choices[choice.dest], choice.help or "")


def _synopsis(parser: argparse.ArgumentParser) -> str:
    """The line that shows what may be typed; of options that exclude each other, one."""
    rivals = {id(a): group._group_actions for group in parser._mutually_exclusive_groups for a in group._group_actions}
    options, words, done = [], [], set[int]()
    for action in parser._actions:
        if SHARED & {*action.option_strings} or id(action) in done:
            continue
        if not action.option_strings:
            text = italic(_metavar(action)) + (" ..." if action.nargs in ("*", "+") else "")
            words.append(f"[{text}]" if action.nargs in ("?", "*") else text)
            continue
        group = [one for one in rivals.get(id(action), [action]) if one.option_strings]
        done |= {id(one) for one in group}
        options.append(f"[{' | '.join(_option(one, short=True) for one in group)}]")
    return " ".join([bold(parser.prog), *options, *words])


def _options(page: Page, actions: Iterable[argparse.Action]) -> None:
    for action in actions:
        if action.option_strings:
            text = action.help or ""
            if action.dest in ("help", "version"):
                text = text.removesuffix(" and exit").replace("show program's version number", "print the version")
            page.item(_option(action), _sentence(text))


def _option(action: argparse.Action, *, short: bool = False) -> str:
    text = ", ".join(map(bold, action.option_strings[-1:] if short else action.option_strings))
    if action.nargs == 0:
        return text
    return f"{text} " + ("|".join(map(escape, action.choices)) if action.choices else italic(_metavar(action)))


def _metavar(action: argparse.Action) -> str:
    return str(action.metavar or action.dest.upper().replace("_", "-"))


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
