"""Unpacks request bodies that came compressed (Content-Encoding: gzip or deflate), a bounded piece at a time.

Between two pieces the event loop goes on. No body becomes larger than server.max_body, whatever it was packed from.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from accelerd.base.errors import AccelError

GZIP: Final = 16 + zlib.MAX_WBITS
# What zlib is told of each. RFC 9110, 8.4.1: deflate has zlib's own frame, and x-gzip is an old name.
CODINGS: Final[Mapping[bytes, int]] = {b"gzip": GZIP, b"x-gzip": GZIP, b"deflate": zlib.MAX_WBITS}
ACCEPTED: Final = "gzip, deflate"
PIECE: Final = 256 << 10  # bytes that are unpacked at a time: less than a millisecond
INPUT: Final = 64 << 10  # bytes given to zlib at a time, which copies what it does not use


def coding_of(value: bytes) -> bytes | None:
    """The coding that a Content-Encoding header names; None: the body is not compressed. AccelError."""
    coding = value.strip().lower()
    if coding == b"identity":
        return None
    if coding not in CODINGS:
        shown = value[:60].decode("latin-1")
        text = f"a body with Content-Encoding {shown!r} cannot be unpacked"
        hint = "send it with gzip or deflate, or uncompressed"
        raise AccelError("unsupported_media_type", text, hint=hint, accept_encoding=ACCEPTED)
    return coding


async def unpack(
    parts: Sequence[bytes], coding: bytes, limit: int, hold: Callable[[int], AccelError | None]
) -> list[bytes]:
    """The body, in pieces. AccelError: it is larger than `limit`, is not valid, or `hold` refuses so many bytes."""
    found, size, packed = list[bytes](), 0, sum(map(len, parts))
    unpacker = zlib.decompressobj(CODINGS[coding])
    for part in parts:
        for start in range(0, len(part), INPUT):
            rest, piece = part[start : start + INPUT], b""
            while not unpacker.eof and (rest or len(piece) == PIECE):
                try:
                    piece = unpacker.decompress(rest, PIECE)
                except zlib.error as error:
                    raise _invalid(coding, str(error).rpartition(": ")[2]) from None
                rest, size = unpacker.unconsumed_tail, size + len(piece)
                if size > limit:
                    text = f"the body, unpacked, is larger than {limit} bytes (server.max_body)"
                    raise AccelError("body_too_large", text)
                if (refused := hold(packed + size)) is not None:
                    raise refused
                found.append(piece)
                await asyncio.sleep(0)
            if rest or unpacker.unused_data:
                raise _invalid(coding, "there is data after its end")
    if not unpacker.eof:
        raise _invalid(coding, "its end is missing")
    hold(size)
    return found


def _invalid(coding: bytes, why: str) -> AccelError:
    return AccelError("bad_request", f"the body is not valid {coding.decode()}: {why}")
