"""The engine `lemonade`: models inside a Lemonade Server."""

from accelerd.engines.lemonade.engine import Lemonade

__all__ = ["Lemonade"]
