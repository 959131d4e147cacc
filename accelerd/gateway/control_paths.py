"""Which requests are for the control API: what manages models is asked for on the control socket alone."""

from __future__ import annotations

from accelerd.base.errors import AccelError
from accelerd.base.names import CONTROL_PREFIX, ROUTER_PATHS, UNLOAD_PREFIX
from accelerd.gateway.request_parser import HttpRequest


def is_for_control(request: HttpRequest, path: str) -> bool:
    """AccelError control_only for a path of other programs that clients look for on the TCP port."""
    if path.startswith(CONTROL_PREFIX + "/"):
        return request.local
    methods = ("POST",) if path.startswith(UNLOAD_PREFIX) else ROUTER_PATHS.get(path, ())
    if request.method.decode() not in methods:
        return False
    if not request.local:
        text = f"{path[:200]} is answered on the control socket only"
        hint = f"curl --unix-socket $XDG_RUNTIME_DIR/accelerd/accelerd.sock http://localhost{path[:200]}, or accelctl"
        raise AccelError("control_only", text, hint=hint)
    return True
