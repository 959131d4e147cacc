"""Engines: how each kind of program is started, when it is ready, what it can do. A folder each; starts nothing."""
