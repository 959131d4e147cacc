"""accelerd: one supervisor daemon for the local AI models of a Linux machine."""

__version__ = "0.7.0"
