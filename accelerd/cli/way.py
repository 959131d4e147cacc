"""Which way to the daemon: the session bus when the accelerd on it is the one that is meant, else the control socket.

Chooses when something is asked, not before: a command that needs no daemon waits for no bus. A question starts nobody;
work may have the bus start accelerd, where it could. Must never send the same thing both ways.
"""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from accelerd.base import names
from accelerd.base.ports import Roots
from accelerd.cli.client import Client, Reach, Way

if TYPE_CHECKING:
    from accelerd.cli.bus_client import BusClient
    from accelerd.cli.bus_link import Link

LOOK_WITHIN: Final = 2.0  # s
START_WITHIN: Final = 20.0  # s that a service may take to start
RESTART: Final = f"systemctl --user restart {names.PROGRAM}"


class Chooser:
    """The daemon as a command asks it, either way."""

    def __init__(
        self, roots: Roots, env: Mapping[str, str], option: str | None = None, look_within: float = LOOK_WITHIN
    ) -> None:
        """`option`: the socket that the command line names; `look_within`: seconds until a bus that does not answer is
        left for the socket."""
        named = option or env.get(names.ENV_SOCKET)
        self.path = Path(named or roots.control_socket)
        self._env = env
        self._look_within = look_within
        self._runtime = roots.runtime
        self._forced = "" if not named else "--socket names it" if option else f"${names.ENV_SOCKET} names it"
        self._socket = Client(self.path)
        self._link: Link | None = None
        self._bus: BusClient | None = None
        self._not: Way | None = None  # the bus was tried: why it is not used
        self._absent = False  # is there a bus, and nobody on it with the name?

    def way(self) -> Way:
        """The one that a question takes."""
        reach = self._reach()
        return reach.way() if self._bus is not None or self._not is None else self._not

    def get(self, route: str, *, patience: float | None = None, **query: Any) -> dict[str, Any]:
        return self._reach().get(route, patience=patience, **query)

    def post(self, route: str, *, patience: float | None = None, **query: Any) -> dict[str, Any]:
        return self._reach(work=True).post(route, patience=patience, **query)

    def events(self, route: str, **query: Any) -> Iterator[dict[str, Any]]:
        return self._reach(work=True).events(route, **query)

    def lines(self, route: str, *, follow: bool, **query: Any) -> Iterator[str]:
        return self._reach().lines(route, follow=follow, **query)

    def open(
        self, method: str, target: str, *, timeout: float | None, body: bytes | None = None
    ) -> AbstractContextManager[http.client.HTTPResponse]:
        """A request to a model: over the socket, whatever way the rest takes."""
        if not self._forced and not self._listens():
            self._reach(work=True)
        return self._socket.open(method, target, timeout=timeout, body=body)

    def stream(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        return self._socket.stream(response)

    def link(self) -> Link | None:
        return self._reach().link()

    def close(self) -> None:
        """What was asked for and is given up with this program is given up now."""
        if self._bus is not None:
            self._bus.close()
        elif self._link is not None:
            self._link.close()
        self._bus = self._link = None

    # --- the choice -------------------------------------------------------------------------------------------

    def _reach(self, work: bool = False) -> Reach:
        if self._bus is None and self._not is None:
            self._not = self._look()
        if self._bus is None and work and self._absent and not self._listens():
            self._not = self._start()
        return self._bus or self._socket

    def _look(self) -> Way | None:
        """Have the bus, or say why not."""
        if self._forced:
            return Way("socket", self._forced)
        from accelerd.cli.bus_link import session_address

        address = session_address(self._env)
        if address is None:
            return Way("socket", "there is no session bus")
        return self._connect(address)

    def _connect(self, address: str) -> Way | None:
        from accelerd.cli.bus_link import Link, LinkError

        link = Link(address)
        try:
            link.connect(self._look_within)
        except ImportError as error:
            return Way("socket", f"{error.name} is missing, which the bus needs", "sudo apt install python3-gi")
        except LinkError as error:
            link.close()
            return Way("socket", f"the session bus cannot be reached: {error.message}")
        self._link = link
        return self._same(link)

    def _same(self, link: Link) -> Way | None:
        """Is the accelerd on the bus the one that is meant?"""
        from accelerd.cli.bus_client import BusClient
        from accelerd.cli.bus_link import ABSENT, LATE, LinkError

        try:
            theirs = str(
                link.get(names.BUS_NAME, names.BUS_PATH, names.BUS_MANAGER, "RuntimeDirectory", self._look_within)
            )
        except LinkError as error:
            self._absent = error.name in ABSENT
            if self._absent:
                return Way("socket", f"nobody has the name {names.BUS_NAME} on the session bus", RESTART)
            if error.name == LATE:
                return Way("socket", f"{names.BUS_NAME} does not answer on the session bus", RESTART)
            return Way("socket", f"{names.BUS_NAME} does not say which accelerd it is: {error.message}", RESTART)
        if os.path.realpath(theirs) != os.path.realpath(self._runtime):
            return Way("socket", f"{names.BUS_NAME} is another accelerd, that of {theirs}")
        self._absent = False
        self._bus = BusClient(link, self._socket, why=f"{names.BUS_NAME}, which runs in {theirs}")
        return None

    def _start(self) -> Way | None:
        """Have the bus start accelerd, where it can."""
        from accelerd.cli.bus_link import BUS, BUS_PATH, LinkError

        self._absent = False  # once
        link = self._link
        if link is None:
            return self._not
        try:
            known = link.call(BUS, BUS_PATH, f"{BUS}.ListActivatableNames", "()", within=self._look_within)[0]
            if names.BUS_NAME not in known:
                return self._not
            start = f"{BUS}.StartServiceByName"
            link.call(BUS, BUS_PATH, start, "(su)", names.BUS_NAME, 0, within=START_WITHIN)
        except LinkError as error:
            return Way("socket", f"the bus cannot start {names.PROGRAM}: {error.message}", RESTART)
        return self._same(link)

    def _listens(self) -> bool:
        """Is somebody there on the socket, be it systemd that starts accelerd then?"""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(self._look_within)
            try:
                probe.connect(str(self.path))
            except OSError:
                return False
            return True
