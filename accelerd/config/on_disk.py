"""What a configuration names beside models, and why it cannot be used: files, programs, keys, certificates.

All of it may change without the configuration, and none of it may keep the rest from being served: rules.py makes
warnings of it. A volume that does not answer is waited for only shortly.
"""

from __future__ import annotations

import binascii
import errno
import os
import re
from collections.abc import Iterator, Mapping
from typing import Final

from accelerd.base import volumes
from accelerd.base.files import read_small
from accelerd.config import key_file
from accelerd.config.model import Config, ModelSpec
from accelerd.config.named_files import named_files
from accelerd.config.remotes import Remote

PATIENCE: Final = 0.3  # s that a volume has to answer: a start and a reload wait for it
_SECRET_HEADER: Final = re.compile(r"auth|key|token|secret|cookie", re.IGNORECASE)
_PEM: Final = re.compile(rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)-----END ")


def files(spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """Files and programs of a model that cannot be used: the field, and why."""
    if spec.elsewhere:
        return  # it reads none of them
    for field, path in named_files(spec):
        folder = field == "path" and spec.engine == "vllm"  # as Hugging Face has models
        if reason := file_reason(path, program=field == "binary", folder=folder):
            yield field, reason
    if spec.engine in ("command", "vllm") and spec.command.argv and not (spec.binary or spec.contained):
        written = spec.origin("command.argv").file is not None
        if reason := _program_reason(spec.command.argv[0]):
            yield "command.argv" if written else "command.preset", reason


def _program_reason(program: str) -> str | None:
    """Of the first word of a command line."""
    if "/" in program:
        return file_reason(os.path.expanduser(program), program=True)
    found = volumes.which(program, os.environ.get("PATH", os.defpath), PATIENCE)
    return None if found else f"the program {program} is not on PATH; install it, or set binary = … to its path"


def remotes(config: Config, environ: Mapping[str, str] | None) -> Iterator[tuple[tuple[str, ...], str]]:
    """What would fail at the first request to a remote, or tell others a key: the key in the file, and why.

    `environ`: the daemon's, which has systemd's credentials; None: this is not the daemon.
    """
    for name, remote in config.remotes.items():
        for path, text in _remote(remote, environ):
            yield ("remotes", name, *path), text


def _remote(remote: Remote, environ: Mapping[str, str] | None) -> Iterator[tuple[tuple[str, ...], str]]:
    keyed = remote.key_file is not None or remote.credential is not None
    secrets = [header for header, _ in remote.headers if _SECRET_HEADER.search(header)]
    if remote.in_the_clear and (keyed or secrets):
        what = "the key is" if keyed else f"the header {secrets[0]} is"
        yield ("url",), f"{what} sent to this address without encryption; use https:// if the server has it"
    if keyed:
        for header, _ in remote.headers:
            if header.lower() == remote.key_header.lower():
                yield ("headers", header), "this is sent in place of the key, which has no effect"
    if remote.key_file is not None:
        if reason := key_file.to_send(remote.key_file)[1]:
            yield ("key_file",), reason
        elif (several := len(key_file.read(remote.key_file)[0])) > 1:
            yield ("key_file",), f"{remote.key_file} has {several} keys; only the first is used"
    if environ is not None and remote.credential is not None:
        why = key_file.of_credential(remote.credential, environ)[1]
        yield from [(("credential",), why)] if why else []
    if remote.ca_file is not None:
        if unusable := file_reason(remote.ca_file, program=False) or _no_certificate(remote.ca_file):
            yield ("ca_file",), unusable
        elif not remote.url.startswith("https:"):
            yield ("ca_file",), "has no effect with an address that begins with http://, as there is no TLS"


def _no_certificate(path: str) -> str | None:
    try:
        data = read_small(path)
    except OSError as error:
        return f"cannot read {path}: {error.strerror}"
    found = _PEM.findall(data)
    if not found:
        private = "; it has a private key, which belongs elsewhere" if b"PRIVATE KEY-----" in data else ""
        return f"{path} contains no certificate in PEM (-----BEGIN CERTIFICATE-----){private}"
    for text in found:
        try:
            whole = binascii.a2b_base64(text)[:1] == b"\x30"  # an ASN.1 sequence
        except ValueError:
            whole = False
        if not whole:
            return f"{path} contains a certificate that is broken; copy it again"
    return None


def file_reason(value: str | None, *, program: bool, folder: bool = False) -> str | None:
    """Why a file with an absolute path cannot be used. `folder`: it may be one."""
    if value is None or not value.startswith("/"):
        return None
    (seen,) = volumes.look([value], PATIENCE).values()
    if isinstance(seen, volumes.NoAnswer):
        return f"cannot access {value}: {seen.strerror}"
    if seen.error in (errno.ENOENT, errno.ENOTDIR):
        return f"no such file: {value}"
    if seen.error:
        return f"cannot access {value}: {os.strerror(seen.error)}"
    if seen.is_dir and not folder:
        return f"expected a file, found a directory: {value}"
    if not (seen.runnable if program else seen.readable):
        return f"cannot {'run' if program else 'read'} {value}: permission denied"
    return None
