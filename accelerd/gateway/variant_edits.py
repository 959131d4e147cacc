"""Changes a request as a variant says: fields taken away, added or written, a system prompt. Pure: bytes in, bytes out.

Every value that the variant does not name stays byte for byte as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Raw

from accelerd.config.variants import FieldPath, Variant
from accelerd.gateway.request_body import FormBody, form_fields, form_part, read_form
from accelerd.gateway.responses import ANTHROPIC, FORMS, GENERATE, RESPONSES

Values = dict[str, Raw]

CHATS: Final = ("/v1/chat/completions", "/api/chat")  # and what is below them
SYSTEM_ROLES: Final = ("system", "developer")
OBJECT: Final = b"{"
NULL: Final = Raw(b"null")
VALUES: Final = msgspec.json.Decoder(Values)
ITEMS: Final = msgspec.json.Decoder(list[Raw])
TEXT: Final = msgspec.json.Decoder(str | list[Raw] | None)


def edited(variant: Variant, body: bytes, path: str) -> bytes:
    """A JSON body, which was found valid, of a request to `path`."""
    values = _values(Raw(body))
    for field in variant.remove:
        _remove(values, field)
    for field, value in variant.default:
        _write(values, field, Raw(value), over=False)
    for field, value in variant.set:
        _write(values, field, Raw(value), over=True)
    if variant.system is not None:
        _prompt(values, path, variant.system, instead=variant.system_mode == "instead")
    return msgspec.json.encode(values)


def _values(raw: Raw) -> Values:
    return VALUES.decode(raw)


def _is_object(raw: Raw) -> bool:
    return bytes(memoryview(raw)[:64]).lstrip()[:1] == OBJECT


def _remove(values: Values, field: FieldPath) -> None:
    name, *rest = field
    if not rest:
        values.pop(name, None)
    elif name in values and _is_object(values[name]):
        inner = _values(values[name])
        _remove(inner, tuple(rest))
        values[name] = Raw(msgspec.json.encode(inner))


def _write(values: Values, field: FieldPath, value: Raw, *, over: bool) -> None:
    """`over`: also where the client has written something."""
    name, *rest = field
    there = values.get(name)
    if not rest:
        if over or there is None:
            values[name] = value
        return
    if there is not None and not _is_object(there):
        if not over:
            return
        there = None
    inner = _values(there) if there is not None else {}
    _write(inner, tuple(rest), value, over=over)
    values[name] = Raw(msgspec.json.encode(inner))


class _Message(msgspec.Struct, gc=False):
    role: str = ""


MESSAGE: Final = msgspec.json.Decoder(_Message)


def _prompt(values: Values, path: str, text: str, *, instead: bool) -> None:
    """What is no list of messages stays: it is refused by whoever reads it next."""
    if path.startswith(CHATS):
        try:
            messages = ITEMS.decode(values.get("messages", NULL))
        except msgspec.DecodeError:
            return
        values["messages"] = _json(_messages(messages, text, instead=instead))
    elif path.startswith((ANTHROPIC, RESPONSES, GENERATE)):
        name = "instructions" if path.startswith(RESPONSES) else "system"
        values[name] = _before(text, None if instead else values.get(name))


def _messages(messages: Sequence[Raw], text: str, *, instead: bool) -> list[Raw]:
    """The first one is the system prompt: some templates take no second one."""
    own = _json({"role": "system", "content": text})
    if instead:
        return [own, *(one for one in messages if _role(one) not in SYSTEM_ROLES)]
    if not messages or _role(messages[0]) not in SYSTEM_ROLES:
        return [own, *messages]
    first = _values(messages[0])
    first["content"] = _before(text, first.get("content"))
    return [_json(first), *messages[1:]]


def _role(message: Raw) -> str:
    """Nothing where it says none."""
    try:
        return MESSAGE.decode(message).role
    except msgspec.DecodeError:
        return ""


def _before(text: str, there: Raw | None) -> Raw:
    """The text, and then what is there: a text, or a list of blocks. The engine refuses what is neither."""
    try:
        said = TEXT.decode(there) if there is not None else None
    except msgspec.DecodeError:
        return there or _json(text)
    if not said:
        return _json(text)
    return _json(f"{text}\n\n{said}" if isinstance(said, str) else [{"type": "text", "text": text}, *said])


def _json(value: object) -> Raw:
    return Raw(msgspec.json.encode(value))


def edited_form(variant: Variant, body: bytes, form: FormBody, path: str) -> tuple[bytes, FormBody]:
    """A form, which was found valid, of a request to `path`, and what it tells now. AccelError bad_request.

    Fields of a form are not nested; the system prompt is for chats.
    """
    parts = form_fields(body, form)
    gone = {".".join(field) for field in variant.remove} | {".".join(field) for field, _ in variant.set}
    kept = [(name, part) for name, part in parts if name not in gone]
    there = {name for name, _ in kept}
    added = [item for item in variant.default if ".".join(item[0]) not in there] + list(variant.set)
    new = [form_part(form, ".".join(field), _as_text(value)) for field, value in added]
    made = b"".join([*new, *(part for _, part in kept), form.mark + b"--\r\n"])
    return made, read_form(made, form.mark[2:].decode(), FORMS[path])


def _as_text(value: bytes) -> bytes:
    """As a form has it: a string without its quotes, everything else as JSON has it."""
    said = msgspec.json.decode(value)
    return said.encode() if isinstance(said, str) else value
