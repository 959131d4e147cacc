"""Forms: the model is found, nothing else is touched, and no bytes do more than be refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerd.base.errors import AccelError
from accelerd.gateway.request_body import MAX_NAME, MAX_PARTS, boundary_of, content_type, read_form

B = "b0undary"
WAV = b"RIFF\x00\r\n--b0undar\r\n\xff" * 20


def part(name: str, content: bytes, more: str = "", headers: str = "") -> bytes:
    return f'Content-Disposition: form-data; name="{name}"{more}\r\n{headers}\r\n'.encode() + content


def form(*parts: bytes, end: bytes = b"--\r\n") -> bytes:
    return b"".join(b"--" + B.encode() + b"\r\n" + one + b"\r\n" for one in parts) + b"--" + B.encode() + end


FILE = part("file", WAV, '; filename="a.wav"', "Content-Type: audio/wav\r\n")
MODEL = part("model", b"whisper")


@pytest.mark.parametrize("parts", [(FILE, MODEL), (MODEL, FILE), (part("language", b""), MODEL, FILE)])
def test_the_model_is_found_wherever_it_stands(parts: tuple[bytes, ...]) -> None:
    found = read_form(form(*parts), B)
    assert (found.model, found.stream, found.wants_tools()) == ("whisper", False, False)


@pytest.mark.parametrize(
    ("said", "streams"), [(b"true", True), (b"True", True), (b"1", True), (b"false", False), (b"", False)]
)
def test_stream_is_respected(said: bytes, streams: bool) -> None:
    assert read_form(form(MODEL, part("stream", said), FILE), B).stream is streams


@pytest.mark.parametrize("name", ["w", "whisper-v3:turbo", "a" * 100])
def test_only_the_name_is_another_afterwards(name: str) -> None:
    body = form(FILE, MODEL, part("language", b"whisper"))
    changed = read_form(body, B).with_model(body, name)
    assert changed == form(FILE, part("model", name.encode()), part("language", b"whisper"))
    assert read_form(changed, B).model == name


def test_how_clients_write_it() -> None:
    """curl, httpx, undici and browsers."""
    curl = (
        b'Content-Disposition: form-data; name="file"; filename="a\\"b.wav"\r\nContent-Type: audio/x-wav\r\n\r\n' + WAV
    )
    bare = b"content-disposition:form-data;name=model\r\n\r\nwhisper"
    star = b"Content-Disposition: form-data; name=\"prompt\"; filename*=utf-8''a.txt\r\n\r\nx"
    assert read_form(form(curl, bare, star, end=b"--"), B).model == "whisper"


def test_the_length_of_the_audio_is_no_matter() -> None:
    assert read_form(form(part("file", b"\r\n" * 1_000_000), MODEL), B).model == "whisper"


WRONG: dict[str, tuple[bytes, str | None]] = {
    "empty": (b"", None),
    "no-boundary": (b"model=whisper", None),
    "preamble": (b"hello\r\n" + form(MODEL, FILE), None),
    "no-end": (form(MODEL, FILE)[:-20], None),
    "after-the-end": (form(MODEL, FILE) + b"more", None),
    "no-file": (form(MODEL), "file"),
    "two-models": (form(MODEL, part("model", b"other"), FILE), "model"),
    "two-files": (form(MODEL, FILE, FILE), "file"),
    "empty-model": (form(part("model", b""), FILE), "model"),
    "long-model": (form(part("model", b"x" * (MAX_NAME + 1)), FILE), "model"),
    "very-long-model": (form(part("model", b"x" * 100_000), FILE), "model"),
    "model-not-utf8": (form(part("model", b"\xff"), FILE), "model"),
    "model-with-a-line": (form(part("model", b"a\r\nb"), FILE), "model"),
    "stream-maybe": (form(MODEL, part("stream", b"maybe"), FILE), "stream"),
    "no-name": (form(b"Content-Disposition: form-data\r\n\r\nx", MODEL, FILE), None),
    "two-names": (form(b'Content-Disposition: form-data; name="a"; name="b"\r\n\r\nx', MODEL, FILE), None),
    "two-dispositions": (
        form(MODEL.replace(b"\r\n\r\n", b'\r\nContent-Disposition: form-data; name="b"\r\n\r\n')),
        None,
    ),
    "encoded": (form(part("model", b"d2g=", headers="Content-Transfer-Encoding: base64\r\n"), FILE), None),
    "no-headers": (form(b"\r\nx", MODEL, FILE), None),
    "endless-headers": (form(b"X: " + b"x" * 10_000 + b"\r\n\r\nx", MODEL, FILE), None),
    "folded": (form(b'Content-Disposition: form-data;\r\n name="model"\r\n\r\nx', FILE), None),
    "boundary-in-a-line": (form(MODEL, FILE).replace(b"--b0undary\r\n", b"--b0undaryx\r\n", 1), None),
    "too-many": (form(*[part(f"x{i}", b"") for i in range(MAX_PARTS)], MODEL, FILE), None),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_forms_are_refused_by_name(case: str) -> None:
    body, param = WRONG[case]
    with pytest.raises(AccelError) as caught:
        read_form(body, B)
    assert (caught.value.code, caught.value.param) == ("bad_request", param)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("header", "boundary"),
    [
        ("multipart/form-data; boundary=abc", "abc"),
        ("Multipart/Form-Data;boundary=----WebKitFormBoundaryAb1", "----WebKitFormBoundaryAb1"),
        ('multipart/form-data; charset=utf-8; boundary="a b?c"', "a b?c"),
    ],
)
def test_the_boundary_is_read(header: str, boundary: str) -> None:
    assert boundary_of(header) == boundary
    assert boundary_of(content_type(boundary)) == boundary


@pytest.mark.parametrize(
    "header",
    [
        "multipart/form-data", "multipart/form-data; boundary=", 'multipart/form-data; boundary="a\r\nX: y"',
        "multipart/form-data; boundary=" + "x" * 71, "multipart/form-data; boundary=a; boundary=b",
        "multipart/mixed; boundary=a", 'multipart/form-data; boundary="a "',
    ],
)  # fmt: skip
def test_a_boundary_that_could_be_misread_is_refused(header: str) -> None:
    with pytest.raises(AccelError):
        boundary_of(header)


PIECES = st.sampled_from(
    [b"--", B.encode(), b"\r\n", b'name="model"', b"Content-Disposition: form-data; ", b"whisper", b";", FILE]
)


@given(st.lists(PIECES | st.binary(max_size=6), max_size=30).map(b"".join))
def test_any_bytes_are_understood_or_refused(body: bytes) -> None:
    found: Any
    try:
        found = read_form(body, B).model
    except AccelError as error:
        found = error.code
    assert found == "bad_request" or (isinstance(found, str) and found.encode() in body)
