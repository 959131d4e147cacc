"""Servers elsewhere: can their keys and certificates be used, do they answer and take the key, do they have the models?

Only where the configuration names some. The daemon asks them, who has their credentials, and loads nothing there.
"""

from __future__ import annotations

from collections.abc import Iterator
from shlex import quote

from accelerd.cli.checks.base import Check, CheckContext, Level
from accelerd.cli.failure import Failure
from accelerd.cli.text import count, curl_with_key, printable
from accelerd.config import key_file, on_disk
from accelerd.config.model import BUILT_IN
from accelerd.config.problems import key_text
from accelerd.config.remotes import Remote


def remotes(s: CheckContext) -> Iterator[Check]:
    """Each remote."""
    for path, reason in on_disk.remotes(s.config, None):
        origin = s.config.origins.get(".".join(path), BUILT_IN)
        level: Level = "fail" if unusable(s.config.remotes[path[1]], path[2]) else "warn"
        fix = f"correct {'.'.join(path[2:])} in {origin.file}:{origin.line}"
        yield Check("remotes", level, printable(f"{key_text(path)}: {reason}"), fix)
    if not s.config.remotes or isinstance(s.status, Failure):
        return
    try:
        found = s.client.get("remotes", timeout=30.0)["remotes"]
    except Failure as failure:
        yield Check("remotes", "warn", f"accelerd does not say whether they answer: {failure.message}")
        return
    for one in found:
        remote = s.config.remotes.get(one["name"])
        if not one["reachable"]:
            text = printable(f"{one['name']}: {one['trouble']}")
            yield Check("remotes", "warn", text, by_hand(remote) if remote is not None else "accelctl reload")
            continue
        key = " with its key" if one["key"] else ""
        text = f"{one['name']} answers{key} and has {count(len(one['models']), 'model')}"
        yield Check("remotes", "ok", printable(text))
        for name in one["missing"]:
            text = f"{one['name']} has no model of the name that {name} gives it"
            yield Check("remotes", "warn", text, "accelctl remotes")


def unusable(remote: Remote, key: str) -> bool:
    """Does no request reach it because of what this key names?"""
    if key == "key_file":
        return remote.key_file is not None and key_file.to_send(remote.key_file)[1] != ""
    return key == "ca_file" and remote.url.startswith("https:")


def by_hand(remote: Remote) -> str:
    """A command that asks it for its models without accelerd. The key is on no command line, and not in the output."""
    options = ["--cacert", quote(remote.ca_file)] if remote.ca_file is not None else []
    options += ["--proxy", quote(remote.proxy)] if remote.proxy is not None else []
    url = remote.address("/api/tags" if remote.api == "ollama" else "/v1/models")
    if remote.api == "anthropic":
        options += ["-H", "anthropic-version:2023-06-01"]
    if remote.key_file is None:
        return " ".join(["curl", "-i", *options, url])
    header = f"{remote.key_header}: {'' if remote.api == 'anthropic' else 'Bearer '}"
    return " ".join([curl_with_key(remote.key_file, header), "-i", *options, url])
