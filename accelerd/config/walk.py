"""Validates one parsed file against the schema and collects every mistake in it.

Turns nested tables into flat entries {path: value in the program's unit}, each with its file and line. Checks one key
at a time, with a suggestion for one that does not exist; rules.py checks what involves several keys or files. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final

import msgspec
from msgspec import Struct

from accelerd.config import shape
from accelerd.config.positions import KeyPath
from accelerd.config.problems import Problem, Severity, closest, did_you_mean, key_text, kind_text, value_text
from accelerd.config.shape import SchemaNode

# names that llama-server, llama-swap, Ollama and LiteLLM use
SYNONYMS: Final[Mapping[str, str]] = {
    "alias": "aliases", "args": "extra_args", "cmd": "path", "ctx": "context", "ctx_size": "context",
    "context_length": "context", "context_size": "context", "max_context": "context", "n_ctx": "context",
    "num_ctx": "context", "cache_type": "kv_cache_type", "cache_type_k": "kv_cache_type",
    "cache_type_v": "kv_cache_type", "environment": "env", "fa": "flash_attention", "flash_attn": "flash_attention",
    "file": "path", "filename": "path", "gguf": "path", "model_path": "path", "hf": "model", "hf_repo": "model",
    "repo": "model", "id": "model", "keep_alive": "idle_timeout", "ttl": "idle_timeout", "timeout": "start_timeout",
    "n_gpu_layers": "gpu_layers", "ngl": "gpu_layers", "num_gpu": "gpu_layers", "n_parallel": "parallel",
    "slots": "parallel", "np": "parallel", "max_concurrency": "concurrency", "concurrency_limit": "concurrency",
    "profiles": "profile", "profile": "profiles", "temp": "temperature", "embedding": "embeddings",
    "reranking": "rerank", "no_mmap": "mmap", "autoload": "preload", "load_on_start": "preload", "sticky": "pin",
    "batch_size": "batch", "ubatch_size": "ubatch", "host": "listen", "port": "listen", "bind": "listen",
    "api_key": "key_file", "api_keys": "key_file", "keys": "key_file",
    "api_key_file": "key_file", "cors_origins": "allowed_origins", "hosts": "allowed_hosts", "model": "models",
    "default": "defaults", "engine": "engines", "repetition_penalty": "repeat_penalty",
    "ot": "override_tensor", "override_tensors": "override_tensor", "ncmoe": "n_cpu_moe", "cmoe": "cpu_moe",
    "ncffn": "n_cpu_ffn", "sm": "split_mode", "ts": "tensor_split", "mg": "main_gpu", "loras": "lora",
    "lora_scaled": "lora", "spec_draft_n_max": "draft_max", "draft_n_max": "draft_max",
    "spec_draft_n_min": "draft_min", "draft_n_min": "draft_min", "spec_draft_p_min": "draft_p_min",
    "spec_draft_ngl": "draft_gpu_layers", "ngld": "draft_gpu_layers", "spec_draft_model": "draft_model",
    "model_draft": "draft_model", "rope_frequency_base": "rope_freq_base", "rope_frequency_scale": "rope_freq_scale",
    "ram": "memory", "vram": "memory", "llama_server": "llama-server", "llamacpp": "llama-server",
    "llama": "llama-server", "llama_cpp": "llama-server", "device": "gpus", "gpu": "gpus",
    "llama.cpp": "llama-server", "macros": "profiles", "templates": "profiles",
    "backoff_first": "backoff_initial", "backoff_cap": "backoff_max", "tail": "hold_time",  # before 0.7.0
}  # fmt: skip


NAMED: Final = ("models", "routes", "remotes", "profiles")  # sections with a table for each name


class _NoValue(Enum):
    TABLE = "TABLE"
    INVALID = "INVALID"


TABLE: Final = _NoValue.TABLE  # the entry of a table itself: it exists, maybe empty
INVALID: Final = _NoValue.INVALID  # the value of the key is wrong, and the problem has been reported


class ConfigEntry(Struct, frozen=True):
    """One key's value in the program's unit, and where it was written."""

    value: Any
    file: str
    line: int | None
    items: tuple[tuple[Any, int | None], ...] = ()  # an array's elements with their lines; INVALID ones too

    @property
    def usable(self) -> bool:
        return self.value is not TABLE and self.value is not INVALID


ConfigEntries = dict[KeyPath, ConfigEntry]


class PathBase(Struct, frozen=True):
    """The directories that relative paths and ~ in the file refer to."""

    home: str
    directory: str

    def expand(self, value: str) -> str:
        """An absolute path; ValueError for another user's home."""
        if value == "~" or value.startswith("~/"):
            return self.home + value[1:]
        if value.startswith("~"):
            raise ValueError('an absolute path, or one that begins with "~/"')
        return value if value.startswith("/") else f"{self.directory}/{value.removeprefix('./')}"


class TreeWalker:
    """Turns the nested tables of one file into flat entries."""

    def __init__(self, file: str, lines: Mapping[KeyPath, int], base: PathBase, root: SchemaNode | None = None) -> None:
        """`root`: the schema, if it is not that of accelerd.toml."""
        self.entries: ConfigEntries = {}
        self.problems: list[Problem] = []
        self._file = file
        self._lines = lines
        self._base = base
        self._root = root

    def walk(self, tree: dict[str, Any]) -> None:
        """Fill `entries` and `problems` from what tomllib read."""
        self._visit(self._root or shape.document(), tree, ())

    def _visit(self, node: SchemaNode, value: Any, path: KeyPath) -> None:
        if isinstance(value, dict) and node.table is not None:
            self._put(path, TABLE)
            for key, child in value.items():
                if key in node.table:
                    self._visit(node.table[key], child, (*path, key))
                else:
                    self._unknown(path, key, list(node.table), child)
        elif isinstance(value, dict) and node.names is not None:
            self._put(path, TABLE)
            for key, child in value.items():
                self._leaf(node.names[0], key, (*path, key))
                self._visit(node.names[1], child, (*path, key))
        elif isinstance(value, list) and node.item is not None:
            values = [self._element(node.item, child, (*path, index)) for index, child in enumerate(value)]
            items = tuple((item, self._line((*path, index))) for index, item in enumerate(values))
            self._put(path, INVALID if INVALID in values else tuple(values), items)
        elif node.leaf:
            result = self._leaf(node, value, path)
            # A plain value in place of a table sets all keys of the table.
            for place in [(*path, key) for key in node.table] if node.table else [path]:
                self._put(place, result, line=self._line(path))
        else:
            self._put(path, INVALID)
            one = node.item is not None and _converts(value, node.item)
            hint = f"; {_in_brackets(value, node)}" if one and not node.secret else ""
            self._report(path, f"expected {node.expects}, got {_got(value, node)}{hint}")

    def _element(self, node: SchemaNode, value: Any, path: KeyPath) -> Any:
        """An array's element; of a table what `parse` makes of its values."""
        if node.table is None or not isinstance(value, dict):
            return self._leaf(node, value, path)
        known = node.table
        for key in value.keys() - known.keys():
            self._unknown(path, key, list(known))
        found = {key: self._leaf(known[key], child, (*path, key)) for key, child in value.items() if key in known}
        if len(found) < len(value) or INVALID in found.values():
            return INVALID
        try:
            return node.parse(found) if node.parse is not None else found
        except ValueError as error:
            self._report(path, f"expected {error}")
            return INVALID

    def _leaf(self, node: SchemaNode, value: Any, path: KeyPath) -> Any:
        """The value in the program's unit, or INVALID after a report."""
        try:
            result = msgspec.convert(value, node.type)
        except msgspec.ValidationError:
            self._report(path, f"expected {node.expects}, got {_got(value, node)}")
            return INVALID
        try:
            if node.parse is not None:
                result = node.parse(result)
            if node.path == "file" or (node.path == "program" and ("/" in result or result.startswith("~"))):
                result = self._base.expand(result)
        except ValueError as error:
            self._report(path, f"expected {error}, got {_got(value, node)}")
            return INVALID
        return result

    def _unknown(self, path: KeyPath, key: str, known: list[str], value: Any = None) -> None:
        if isinstance(value, dict) and self._root is None and len(path) == 2 and path[0] in NAMED:
            name = f"{path[1]}.{key}"
            while isinstance(value, dict) and len(value) == 1 and isinstance(only := next(iter(value.values())), dict):
                name, value = f"{name}.{next(iter(value))}", only
            suffix = f"; a name with dots needs quotes: [{key_text((path[0], name))}]"
        else:
            suffix = _hint(key, known, shape.homes() if self._root is None else {})
        what = "section" if not path else "key"
        self._report((*path, key), f"unknown {what}{suffix}")

    def _put(
        self, path: KeyPath, value: Any, items: tuple[tuple[Any, int | None], ...] = (), line: int | None = None
    ) -> None:
        self.entries[path] = ConfigEntry(value, self._file, line or self._line(path), items)

    def _line(self, path: KeyPath) -> int | None:
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path)

    def _report(self, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(self._file, self._line(path), key_text(path), message))


def _in_brackets(value: Any, node: SchemaNode) -> str:
    words = value.split() if isinstance(value, str) and value.startswith("-") else [value]  # an option and its value
    elements = ", ".join(_got(word, node) for word in words)
    return f"{'each' if len(words) > 1 else 'a single'} one is written in brackets: [{elements}]"


def _converts(value: Any, node: SchemaNode) -> bool:
    try:
        msgspec.convert(value, node.type)
    except msgspec.ValidationError:
        return False
    return not isinstance(value, dict)


def _got(value: Any, node: SchemaNode) -> str:
    return kind_text(value) if node.secret else value_text(value)


def _hint(key: str, here: Sequence[str], elsewhere: Mapping[str, Sequence[str]]) -> str:
    """A suffix for "unknown key": a similar key of this table, or the section that the key belongs to, or nothing.

    `elsewhere` maps a key to the sections that know it.
    """
    meant = SYNONYMS.get(key.lower().replace("-", "_"))
    if meant in here:
        return f"; did you mean '{meant}'?"
    if key in elsewhere:
        return f"; it belongs in {' or '.join(elsewhere[key])}"
    suffix = did_you_mean(key, here)
    if suffix or not elsewhere:
        return suffix
    near = closest(key, list(elsewhere))
    return f"; did you mean '{near}', which belongs in {' or '.join(elsewhere[near])}?" if near else ""


def where(entry: ConfigEntry) -> str:
    return f"{entry.file}:{entry.line}"


def problem_at(entry: ConfigEntry, path: KeyPath, message: str, severity: Severity = "error") -> Problem:
    return Problem(entry.file, entry.line, key_text(path), message, severity)
