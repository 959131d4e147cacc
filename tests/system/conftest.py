"""Fixtures of the system room."""

from tests.system.systemd_user import user_manager

__all__ = ["user_manager"]
