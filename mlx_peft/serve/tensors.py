"""Images as the Open Inference Protocol has them: tensors in JSON, of pixels or of files in base64.

Source: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from mlx_peft.serve.asked import based64, brief, must_be_few, must_be_object, read_json
from mlx_peft.serve.problems import unreadable
from mlx_peft.serve.settings import Settings

INPUT, PIXELS, FILES = "images", "UINT8", "BYTES"
OUTPUTS = ("logits", "probabilities")
LONGEST = 200
"""Characters of a request's identifier."""


@dataclass(frozen=True)
class Inference:
    """A request.

    Attributes:
        id: what whoever asks calls it; None where it has no name.
        images: files, or uint8 ``(height, width, 3)``.
        outputs: the names of what is wanted.
    """

    id: str | None
    images: Sequence[bytes | np.ndarray]
    outputs: Sequence[str]


def inference(body: bytes, settings: Settings) -> Inference:
    """What a body asks. Raises Problem, 400, 422."""
    found = must_be_object(read_json(body), "the body", ("id", "parameters", "inputs", "outputs"))
    name = found.get("id")
    if name is not None and not (isinstance(name, str) and len(name) <= LONGEST):
        raise unreadable(f"id should be text of at most {LONGEST} characters, not {brief(name)}")
    inputs = found.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise unreadable(f"inputs should be a list of one tensor, {INPUT}, not {brief(inputs)}")
    return Inference(name, _images(inputs[0], settings), _outputs(found.get("outputs")))


def _outputs(value: Any) -> Sequence[str]:
    if value is None:
        return OUTPUTS
    if not isinstance(value, list):
        raise unreadable(f"outputs should be a list of objects, not {brief(value)}")
    names = [must_be_object(one, "an output", ("name", "parameters")).get("name") for one in value]
    for name in names:
        if name not in OUTPUTS:
            raise unreadable(f"there are the outputs {' and '.join(OUTPUTS)}, and none {brief(name)}")
    return [name for name in OUTPUTS if name in names] or OUTPUTS


def _images(value: Any, settings: Settings) -> Sequence[bytes | np.ndarray]:
    tensor = must_be_object(value, "inputs[0]", ("name", "shape", "datatype", "parameters", "data"))
    if tensor.get("name") != INPUT:
        raise unreadable(f"inputs[0].name should be {INPUT!r}, not {brief(tensor.get('name'))}")
    shape = _shape(tensor.get("shape"))
    kind = tensor.get("datatype")
    if kind == FILES and len(shape) == 1:
        must_be_few(shape[0], settings.images)
        return _files(tensor, shape[0])
    if kind == PIXELS and len(shape) == 4 and shape[3] == 3:
        must_be_few(shape[0], settings.images)
        return _pixels(tensor, shape, settings)
    raise unreadable(
        f"{INPUT} should be {PIXELS} of the shape [images, height, width, 3], or {FILES} of the shape [images], each a "
        f"file in base64, not {brief(kind)} of {len(shape)} dimensions"
    )


def _shape(value: Any) -> Sequence[int]:
    if not isinstance(value, list) or not all(type(side) is int and 0 <= side < 2**31 for side in value):
        raise unreadable(f"inputs[0].shape should be a list of whole numbers, not {brief(value)}")
    return value


def _files(tensor: Mapping[str, Any], count: int) -> Sequence[bytes]:
    data = tensor.get("data")
    if not isinstance(data, list) or len(data) != count:
        raise unreadable(f"inputs[0].data should be a list of {count} files in base64")
    return [based64(text, f"inputs[0].data[{at}]") for at, text in enumerate(data)]


def _pixels(tensor: Mapping[str, Any], shape: Sequence[int], settings: Settings) -> Sequence[np.ndarray]:
    """The numbers as they are, flat or nested as the shape is."""
    try:
        settings.decoding.check(shape[2], shape[1], math.prod(shape[1:]))
    except ValueError as error:
        raise unreadable(f"inputs[0].shape: {error}") from None
    flat = tensor.get("data")
    wanted = f"inputs[0].data should be {math.prod(shape):,} whole numbers 0 to 255, flat or nested as the shape is"
    if not isinstance(flat, list):
        raise unreadable(f"{wanted}, not {brief(flat)}")
    for _ in shape[1:]:
        if not all(type(row) is list for row in flat):
            break
        flat = list(chain.from_iterable(flat))
    if len(flat) != math.prod(shape):
        raise unreadable(wanted)
    try:
        array = np.frombuffer(bytes(flat), np.uint8).reshape(shape)
    except (TypeError, ValueError):
        raise unreadable(wanted) from None
    return list(array)
