"""The root helper: sets the performance level of an AMD GPU for authorized callers, and restores it when they leave.

It runs as root and so is kept small: it uses the standard library, GLib and accelerd.base.names, nothing else of
accelerd. It accepts a PCI slot and one of three levels, never a path or any other value.
"""
