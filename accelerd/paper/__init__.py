"""What goes beside the programs: manual pages from the argument parsers and the schema, argcomplete's shell scripts.

Pure: text out of the parsers, nothing is run. `python -m accelerd.paper` writes the files into a checkout, where they
are kept, so that installing needs no Python; a test holds them against this. Nothing imports it at run time.
"""
