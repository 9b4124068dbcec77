"""What a request asks: its images, whom each of them asks, and how many classes; read from a form or from JSON."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mlx_peft.core.errors import shown
from mlx_peft.core.json_io import from_json
from mlx_peft.serve.problems import Problem, unreadable

FORM, JSON = "multipart/form-data", "application/json"
LONGEST_FIELD = 1024
"""Bytes of a field of a form that is no file."""
TOP = 5
MOST = 100_000
"""Classes that anybody can want."""
FIELDS = ("adapter", "top_k")


@dataclass(frozen=True)
class Asked:
    """What a request asks.

    Attributes:
        images: files, as they were sent.
        adapters: a name an image; None where nothing is said of it.
        top: classes that are told.
    """

    images: Sequence[bytes]
    adapters: Sequence[str | None]
    top: int = TOP


def media_type(kind: str) -> str:
    """Of a content type, in small letters, without parameters: whoever asks what a body is asks here."""
    return kind.partition(";")[0].strip().lower()


def asked(kind: str, body: bytes, most: int, top: bool = True) -> Asked:
    """What a body asks.

    Args:
        kind: its content type.
        most: images that it may have.
        top: whether the number of classes may be asked for.

    Raises:
        Problem: 415, its type is no form's and not JSON's; 400, it is not what its type says; 422, something in it is
            wrong.
    """
    fields = FIELDS if top else FIELDS[:1]
    name = media_type(kind)
    if name == FORM:
        return _of_form(kind, body, most, fields)
    if name == JSON:
        return _of_json(read_json(body), most, fields)
    raise Problem(415, f"the content type should be {FORM} or {JSON}, not {shown(kind) if kind else 'left out'}")


# A form.


@dataclass
class _Part:
    """A part of a form."""

    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)
    size: int = 0


def _of_form(kind: str, body: bytes, most: int, fields: Sequence[str]) -> Asked:
    images: list[bytes] = []
    values: dict[str, list[str]] = {name: [] for name in fields}
    for name, data in _parts(kind, body, 2 * most + len(fields)):
        if name == "images":
            images.append(data)
        elif name in values:
            values[name].append(_text(name, data))
        else:
            raise unreadable(f"the form has a field {shown(name)}: it should have images, {' and '.join(fields)} alone")
    must_be_few(len(images), most)
    adapters = values["adapter"] or [""]
    if len(adapters) not in (1, len(images)):
        raise unreadable(
            f"there are {len(images)} images and {len(adapters)} fields adapter: give one, or one an image"
        )
    each = adapters * len(images) if len(adapters) == 1 else adapters
    tops = values.get("top_k", [])
    if len(tops) > 1:
        raise unreadable("the form has several fields top_k: give one")
    return Asked(images, [name or None for name in each], _top(_number(tops[0])) if tops else TOP)


def _text(name: str, data: bytes) -> str:
    if len(data) > LONGEST_FIELD:
        raise unreadable(f"the field {name} is longer than {LONGEST_FIELD} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise unreadable(f"the field {name} is not text in UTF-8") from None


def _number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text


def _parts(kind: str, body: bytes, most: int) -> list[tuple[str, bytes]]:
    """The parts of a form, with their names. Raises Problem, 400."""
    boundary = parse_options_header(kind)[1].get(b"boundary")
    if not boundary or len(boundary) > 70:  # RFC 2046, 5.1.1
        raise Problem(400, "the content type of a form should name its boundary, of at most 70 characters")
    parts: list[_Part] = []
    name: list[bytes] = []
    ended: list[bool] = []

    def begin() -> None:
        if len(parts) == most:
            raise unreadable(f"the form has more than {most} fields")
        parts.append(_Part())

    def data(chunk: bytes, first: int, last: int) -> None:
        parts[-1].data.append(chunk[first:last])

    def header_field(chunk: bytes, first: int, last: int) -> None:
        name.append(chunk[first:last])

    def header_value(chunk: bytes, first: int, last: int) -> None:
        parts[-1].headers.append((b"".join(name).lower(), chunk[first:last]))
        name.clear()

    callbacks: Any = {
        "on_part_begin": begin,
        "on_part_data": data,
        "on_header_field": header_field,
        "on_header_value": header_value,
        "on_end": lambda: ended.append(True),
    }
    try:
        parser = MultipartParser(boundary, callbacks)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem(400, f"the body is no form as its content type says: {error}") from None
    if not ended:
        raise Problem(400, "the body is no form as its content type says: it has no end")
    return [(_name(part), b"".join(part.data)) for part in parts]


def _name(part: _Part) -> str:
    disposition = next((value for name, value in part.headers if name == b"content-disposition"), b"")
    found = parse_options_header(disposition)[1].get(b"name")
    if found is None:
        raise Problem(400, "a part of the form has no name")
    return found.decode("utf-8", "replace")


# JSON.


def read_json(body: bytes) -> Any:
    """The value of a body. Raises Problem, 400, where it is no JSON."""
    try:
        return from_json(body)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Problem(400, f"the body is not JSON: {reason}"[:300]) from None


def _of_json(value: Any, most: int, fields: Sequence[str]) -> Asked:
    found = must_be_object(value, "the body", ("images", *fields))
    images = found.get("images")
    if not isinstance(images, list):
        raise unreadable(f"images should be a list of objects, not {brief(images)}")
    must_be_few(len(images), most)
    usual = _adapter(found.get("adapter"), "adapter")
    each = [must_be_object(one, f"images[{at}]", ("data", "adapter")) for at, one in enumerate(images)]
    adapters = [_adapter(one.get("adapter", usual), f"images[{at}].adapter") for at, one in enumerate(each)]
    files = [based64(one.get("data"), f"images[{at}].data") for at, one in enumerate(each)]
    return Asked(files, adapters, _top(found.get("top_k", TOP)))


def based64(text: Any, where: str) -> bytes:
    """The bytes of a text in base64. Raises Problem, 422."""
    try:
        if isinstance(text, str):
            return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise unreadable(f"{where} should be an image file in base64, not {brief(text)}")


def must_be_object(value: Any, where: str, keys: Sequence[str]) -> Mapping[str, Any]:
    """Raises Problem, 422, for what is no object, or has other keys."""
    if not isinstance(value, dict):
        raise unreadable(f"{where} should be an object with {', '.join(keys)}, not {brief(value)}")
    for key in value:
        if key not in keys:
            raise unreadable(f"{where} has a key {shown(key)}: it should have {', '.join(keys)} alone")
    return value


def must_be_few(count: int, most: int) -> None:
    """Raises Problem, 422, where there is no image, or there are too many."""
    if not count:
        raise unreadable("there are no images: send one at least")
    if count > most:
        raise unreadable(f"there are {count} images, and at most {most} are answered at once: send fewer")


def _adapter(value: Any, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise unreadable(f"{where} should be the name of an adapter, not {brief(value)}")
    if value is not None and len(value) > LONGEST_FIELD:
        raise unreadable(f"{where} is longer than {LONGEST_FIELD} characters")
    return value or None


def _top(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():  # 5.0 is a whole number in JSON
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
        raise unreadable(f"top_k should be a whole number of 1 to {MOST:,}, not {brief(value)}")
    return value


def brief(value: Any) -> str:
    """A value of a stranger's JSON for a message, whatever it is."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, bool) or value is None:
        return {None: "left out", True: "true", False: "false"}[value]
    return "a number so large" if isinstance(value, int) and abs(value) >= 10**18 else f"{value!r:.40}"
