"""The configuration: TOML schema, loading, drop-ins, what a reload changes.

Reads accelerd.toml and accelerd.toml.d/*.toml into a Config of which every value knows where it was written, or reports
every mistake at once. Starts nothing, keeps no state, and imports neither the server nor the terminal libraries.
"""

from accelerd.config.diff import ConfigDiff, diff
from accelerd.config.dropin import write_dropin
from accelerd.config.load import check, load
from accelerd.config.model import Config, ModelSpec, Origin
from accelerd.config.problems import ConfigErrors, Problem
from accelerd.config.shape import json_schema
from accelerd.config.show import show, show_dict

__all__ = [
    "Config",
    "ConfigDiff",
    "ConfigErrors",
    "ModelSpec",
    "Origin",
    "Problem",
    "check",
    "diff",
    "json_schema",
    "load",
    "show",
    "show_dict",
    "write_dropin",
]
