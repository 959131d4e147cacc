"""The error of a daemon that cannot start: one clear text, printed once, and the exit status for the service manager.

Not an AccelError: nobody is connected yet who could be answered over HTTP.
"""

from __future__ import annotations

from typing import Final

EXIT_FAILURE: Final = 1  # may be different at the next try: a busy port, another instance that is about to end
EXIT_CONFIG: Final = 78  # EX_CONFIG of sysexits.h: trying again cannot help; RestartPreventExitStatus= in the unit


class StartError(Exception):
    """accelerd cannot start; the text says why and what to do."""

    def __init__(self, message: str, *, status: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
