"""What browsers ask before they send a page's request: may it? Access has decided then that the page may come."""

from __future__ import annotations

import re

from accelerd.gateway.request_parser import HttpRequest
from accelerd.gateway.responses import Response

HEADER_LIST = re.compile(rb"[A-Za-z0-9_, -]{1,1000}")


def preflight(request: HttpRequest, origin: str) -> Response:
    """May the page send what it wants to send? An allowed one may send any header: SDKs have many of their own."""
    wanted = request.headers.get(b"access-control-request-headers", b"")
    allowed = wanted.decode() if HEADER_LIST.fullmatch(wanted) else "Authorization, Content-Type"
    headers = {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": allowed,
        "Access-Control-Max-Age": "600",
        "Vary": "Origin, Access-Control-Request-Headers",
    }
    if request.headers.get(b"access-control-request-private-network") == b"true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return Response(204, b"", headers)
