"""What every room may import: names that cross a boundary, errors with codes, small Protocols, control groups.

Imports no other room and no third-party library.
"""
