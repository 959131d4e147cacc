"""The engine `remote`: models of servers elsewhere."""

from accelerd.engines.remote.engine import RemoteEngine

__all__ = ["RemoteEngine"]
