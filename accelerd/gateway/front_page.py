"""GET /: what listens here, for people: HTML for browsers, text for everything else. Says nothing of this machine."""

from __future__ import annotations

from html import escape
from typing import Final

from accelerd.gateway.responses import Response

TEXT: Final = "text/plain; charset=utf-8"
HTML: Final = "text/html; charset=utf-8"
TITLE: Final = "accelerd is running: local AI models behind one address."
ADDRESSES: Final = (  # what it is, and what a client's base URL is, after the host
    ("OpenAI's API", "/v1"),
    ("Anthropic's API", ""),
    ("Ollama's API", ""),
)
PAGES: Final = (
    ("The models", "/v1/models"),
    ("The API as an OpenAPI document", "/openapi.json"),
    ("Whether it works", "/health"),
    ("What it is doing", "/health?full"),
)
DOCS: Final = (
    "Documentation: man accelerd, man accelctl, man accelerd.toml; docs/api.md of its source describes the API."
)
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Vary": "Accept",
}


def front_page(host: str, accept: bytes) -> Response:
    """`host`: the client's word for this machine; `accept`: its Accept header."""
    base = f"http://{host}"
    if b"text/html" in accept.lower():
        return Response(200, _html(base).encode(), HEADERS, HTML)
    lines = [(name, base + path) for name, path in (*ADDRESSES, *PAGES)]
    width = max(len(name) for name, _ in lines)
    text = "".join(f"{name + ':':{width + 2}}{address}\n" for name, address in lines)
    return Response(200, f"{TITLE}\n\n{text}\n{DOCS}\n".encode(), HEADERS, TEXT)


def _html(base: str) -> str:
    bases = "".join(f"<tr><td>{name}<td><code>{escape(base + path)}</code>" for name, path in ADDRESSES)
    pages = "".join(f'<tr><td>{name}<td><a href="{path}">{path}</a>' for name, path in PAGES)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>accelerd</title>'
        "<style>body{font-family:sans-serif;margin:3em}td{padding:.2em 1em .2em 0}</style>"
        f"<h1>accelerd</h1><p>{TITLE}<table>{bases}{pages}</table><p>{DOCS}</html>\n"
    )
