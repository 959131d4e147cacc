"""The root helper: sets the performance level of an AMD GPU for whoever may, and puts it back when they have gone.

It runs as root, so it is small: the standard library, GLib and accelerd.base.names, nothing else of accelerd. It takes
a PCI slot and one of three words, never a path and never another value.
"""
