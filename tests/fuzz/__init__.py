"""Fuzzing: what every parser does with bytes that nobody would send."""
