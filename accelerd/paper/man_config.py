"""The manual page of the configuration, accelerd.toml(5): docs/configuration.md's content, from the same schema."""

from __future__ import annotations

from accelerd.config.reference import INTRODUCTION, TERMS, tables
from accelerd.paper.roff import Page, bold


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
    page.heading("FILES")
    page.item(bold("~/.config/accelerd/accelerd.toml"), "Your own file; accelerd never changes it.")
    page.item(bold("~/.config/accelerd/accelerd.toml.d/*.toml"), "Drop-ins, read after it in the order of their names.")
    page.heading("SEE ALSO")
    page.synopsis(f"{bold('accelctl')}(1), {bold('accelerd')}(8)")
    return page.text()
