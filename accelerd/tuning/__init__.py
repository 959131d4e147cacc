"""Tuning: rules as data for settings that nobody has set, per device, program and model; and what to measure.

rules.toml is the data, docs/tuning.md says how to write more. Knows devices by their description only; starts nothing.
"""
