"""Host, Origin and API keys, as pure rules. The rows of the fault table over HTTP are in test_browsers.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerd.base.errors import AccelError
from accelerd.config.model import ServerSettings
from accelerd.gateway.access import Access, host_name, read_keys

GOOD = {"Host": "localhost:4000"}


def check(access: Access, headers: Mapping[str, str]) -> AccelError | None:
    return access.check({n.lower().encode(): v.encode("utf-8", "surrogateescape") for n, v in headers.items()})


def code(access: Access, **headers: str) -> str | None:
    error = check(access, {name.replace("_", "-"): value for name, value in headers.items()})
    return error.code if error else None


@pytest.mark.parametrize(
    ("authority", "name"),
    [
        ("localhost", "localhost"),
        ("LocalHost:4000", "localhost"),
        ("127.0.0.1:80", "127.0.0.1"),
        ("[::1]", "[::1]"),
        ("[::1]:4000", "[::1]"),
        ("localhost.", "localhost."),
        ("", ""),
        (":4000", ""),
        ("localhost:", ""),
        ("localhost:http", ""),
        ("localhost:4000:4000", ""),
        ("localhost:4000@evil.example", ""),
        ("user@localhost", ""),
        ("localhost/evil", ""),
        ("[::1]evil.example", ""),
        ("[::1]:4000.evil.example", ""),
        ("evil[::1]", ""),
        ("::1", ""),
        ("local host", ""),
        ("localhost\tx", ""),
        ("localhost:٤", ""),
    ],
)
def test_host_names(authority: str, name: str) -> None:
    assert host_name(authority) == name


@pytest.mark.parametrize(
    ("listen", "host", "allowed"),
    [
        ("192.168.1.10:4000", "192.168.1.10:4000", True),
        ("192.168.1.10:4000", "192.168.1.11", False),
        ("[fd00::1]:4000", "[fd00::1]:4000", True),
        ("[fd00::1]:4000", "fd00::1", False),
        ("0.0.0.0:4000", "192.168.1.11:4000", True),
        ("[::]:4000", "[fd00::2]", True),
        ("0.0.0.0:4000", "evil.example:4000", False),  # a name may lead anywhere
        ("0.0.0.0:4000", "10.0.0.1.evil.example", False),
        ("0.0.0.0:4000", "2130706433", False),
        ("127.0.0.1:4000", "192.168.1.10:4000", False),
        ("localhost:4000", "192.168.1.10", False),
    ],
)
def test_addresses_that_it_listens_on_may_be_named(listen: str, host: str, allowed: bool) -> None:
    access = Access(ServerSettings(listen=(listen,)), ())
    assert code(access, Host=host) == (None if allowed else "host_not_allowed")
    assert code(access, Host="localhost") is None


@given(st.text(max_size=40))
def test_any_host_and_origin_is_judged(text: str) -> None:
    access = Access(ServerSettings(), ())
    assert code(access, Host=text) in (None, "host_not_allowed")
    assert code(access, Host="localhost", Origin=text) in ("origin_not_allowed", None)


def test_only_so_many_hosts_are_remembered() -> None:
    access = Access(ServerSettings(), ())
    for port in range(1, 2000):
        assert code(access, Host=f"localhost:{port}") is None
    assert len(access._allowed_values) <= 256


def test_refusals_stay_short() -> None:
    access = Access(ServerSettings(), ())
    long = "x" * 8000
    for headers in ({"Host": long}, {"Host": f"a:{long}"}, {**GOOD, "Origin": long}):
        error = check(access, headers)
        assert error is not None
        assert len(error.message) < 300


def test_read_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# for the laptop\none\n\n  two  \n  # indented remark\n")
    path.chmod(0o600)
    keys = read_keys(str(path))
    assert len(keys) == 2
    access = Access(ServerSettings(), keys)
    for key in ("one", "two"):
        assert code(access, Host="localhost", Authorization=f"Bearer {key}") is None
    assert code(access, Host="localhost", Authorization="Bearer # for the laptop") == "unauthorized"
    assert b"one" not in b"".join(keys)


@pytest.mark.parametrize("content", [b"", b"# nothing\n\n", b"\xff\xfe\n"])
def test_a_key_file_without_keys_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(AccelError, match=f"server.key_file: .*{path}"):
        read_keys(str(path))


class Watched(tuple[bytes, ...]):
    """Keys that know how many of them were looked at."""

    looks = 0

    def __iter__(self) -> Iterator[bytes]:
        for key in super().__iter__():
            Watched.looks += 1
            yield key


def test_every_key_is_compared_whichever_fits(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("one\ntwo\nthree\n")
    path.chmod(0o600)
    keys = Watched(read_keys(str(path)))
    assert {len(digest) for digest in keys} == {32}, "digests of equal length: the comparison takes constant time"
    access = Access(ServerSettings(), keys)
    for key, result in (("one", None), ("three", None), ("wrong", "unauthorized"), ("", "unauthorized")):
        Watched.looks = 0
        assert code(access, Host="localhost", Authorization=f"Bearer {key}") == result
        assert Watched.looks == 3


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer sesame"},
        {"Authorization": "bearer  sesame "},
        {"X-Api-Key": "sesame"},
        {"Api-Key": "sesame"},
        {"Authorization": "Basic abc", "X-Api-Key": "sesame"},
    ],
)
def test_a_key_may_come_either_way(tmp_path: Path, headers: dict[str, str]) -> None:
    path = tmp_path / "keys"
    path.write_text("sesame\n")
    path.chmod(0o600)
    access = Access(ServerSettings(), read_keys(str(path)))
    assert check(access, {**GOOD, **headers}) is None
    wrong = {name: value.replace("sesame", "sesam\udcff") for name, value in headers.items()}
    error = check(access, {**GOOD, **wrong})
    assert error is not None
    assert error.code == "unauthorized"
