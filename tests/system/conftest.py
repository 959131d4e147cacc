"""Fixtures of the system room."""

from tests.system.buses import bus, glib_worker
from tests.system.systemd_user import user_manager

__all__ = ["bus", "glib_worker", "user_manager"]
