"""The engine `command`: any program that serves HTTP."""

from accelerd.engines.command.engine import Command

__all__ = ["Command"]
