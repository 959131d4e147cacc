"""Manual pages in the man macros that groff and mandoc both read: a page is built of headings, paragraphs and lists."""

from __future__ import annotations

import re
from typing import Final

MARK: Final = "accelerd: made by python -m accelerd.paper; installed and removed by packaging/install and uninstall"
SOURCE: Final = "accelerd"  # no version: the pages change when what they tell of does
DATE: Final = "2026-11-21"  # of the form of these pages


def escape(text: str) -> str:
    """Plain text, safe anywhere in a line; characters beyond ASCII by name."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    text = text.replace("^", "\\(ha").replace("~", "\\(ti")
    return "".join(c if ord(c) < 128 else f"\\[u{ord(c):04X}]" for c in text)


def bold(text: str) -> str:
    return f"\\fB{escape(text)}\\fR"


def italic(text: str) -> str:
    return f"\\fI{escape(text)}\\fR"


def marked(text: str) -> str:
    """Markdown's `code` and *emphasis* in running text."""
    parts = re.split(r"(`[^`]+`|\*[^*]+\*)", text)
    made = (bold(p[1:-1]) if p[:1] == "`" else italic(p[1:-1]) if p[:1] == "*" and p[-1:] == "*" and len(p) > 2
            else escape(p) for p in parts)  # fmt: skip
    return "".join(made)


class Page:
    """One page, from its heading on."""

    def __init__(self, name: str, section: int, summary: str) -> None:
        self._lines = [f'.\\" {MARK}', f'.TH {escape(name.upper())} {section} {DATE} {SOURCE} "accelerd\\(aqs manual"']
        self.heading("NAME")
        self._lines.append(f"{escape(name)} \\- {escape(summary)}")

    def heading(self, text: str) -> None:
        self._lines.append(f'.SH "{escape(text)}"' if " " in text else f".SH {escape(text)}")

    def subheading(self, text: str) -> None:
        """`text` is roff already."""
        self._lines.append(f".SS {text}")

    def paragraph(self, text: str) -> None:
        """Markdown's inline marks are heeded."""
        self._lines += self._gap()
        self._text(marked(" ".join(text.split())))

    def item(self, term: str, *texts: str) -> None:
        """A term, which is roff already, and what it is."""
        self._lines += [".TP", term]
        self._text(marked(" ".join(texts[0].split())) if texts and texts[0] else "\\&")
        for text in texts[1:]:
            self._lines.append(".br")
            self._text(marked(" ".join(text.split())))

    def verbatim(self, text: str, indent: int = 4) -> None:
        """Lines as they are."""
        self._lines += [*self._gap(), f".RS {indent}", ".nf"]
        self._lines += [_safe(escape(line)) for line in text.strip("\n").splitlines()]
        self._lines += [".fi", ".RE"]

    def synopsis(self, text: str) -> None:
        """`text` is roff already."""
        self._text(text)

    def _gap(self) -> list[str]:
        return [] if self._lines[-1].startswith((".SH", ".SS")) else [".PP"]

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"

    def _text(self, text: str) -> None:
        # one sentence a line, as roff likes it
        self._lines += [_safe(part) for part in re.split(r"(?<=[.;:?!])\s+(?=[A-Z\\])", text)]


def _safe(line: str) -> str:
    return f"\\&{line}" if line.startswith((".", "'")) else line or "\\&"
