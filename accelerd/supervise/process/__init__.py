"""Processes: spawn, groups, the sweep for leftovers, readers of their output. Knows no home."""
