"""Models by name: what "ORG/REPO:QUANT" or an address means, which files to take, where they lie, fetching them.

The daemon never talks to a hub itself: `Download` runs `python -m accelerd.downloads`, which alone imports
huggingface-hub and reports its progress as JSON lines. Files lie in the cache that other programs use too.
"""
