"""The home "lemonade": an instance is a model inside a Lemonade Server."""

from accelerd.supervise.homes.lemonade.home import LemonadeHome

__all__ = ["LemonadeHome"]
