"""What the OpenAPI document says of the requests: bodies, answers, and examples that can be sent as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from mlx_peft.serve.asked import FORM, JSON, LONGEST_FIELD, MOST, TOP
from mlx_peft.serve.settings import Settings

IMAGE = "base64-image"
"""The format of a text that is an image file: no schema says more of it."""

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGM4kWIEAANWAV/oF4RSAAAAAElFTkSuQmCC"
"""A PNG of one pixel, in base64."""


class Reason(BaseModel):
    status: int = Field(examples=[422])
    reason: str = Field(description="what was wrong, and what would be right")


class Error(BaseModel):
    error: Reason


class Sentence(BaseModel):
    """An error of the Open Inference Protocol."""

    error: str


class Milliseconds(BaseModel):
    decode: float
    queue: float = Field(description="until the device took the first image")
    device: float
    total: float


class Class(BaseModel):
    index: int = Field(ge=0, examples=[3])
    label: str = Field(examples=["cat"])
    probability: float = Field(examples=[0.93])


class Classes(BaseModel):
    adapter: str = Field(examples=["pets"])
    classes: list[Class] = Field(description="the likeliest first")


class Classified(BaseModel):
    results: list[Classes] = Field(description="in the order of the images")
    milliseconds: Milliseconds


class Embedding(BaseModel):
    adapter: str | None = Field(description="null: the bare backbone")
    embedding: list[float]


class Embedded(BaseModel):
    results: list[Embedding] = Field(description="in the order of the images")
    milliseconds: Milliseconds


class Model(BaseModel):
    name: str = Field(examples=["pets"])
    base: str = Field(examples=["vit_tiny_patch16_224"])
    method: str | None = Field(examples=["lora"])
    classes: list[str]
    metrics: dict[str, float] = Field(description="of its run, of the images that were held out")
    loaded: bool = Field(description="whether it is in memory now")
    bytes: int


class Models(BaseModel):
    models: list[Model]


class LetGo(BaseModel):
    name: str
    loaded: Literal[False]


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class ModelReady(Ready):
    name: str


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Tensor(BaseModel):
    name: str
    datatype: Literal["FP32"]
    shape: list[int]
    data: list[float]


class Inferred(BaseModel):
    model_name: str
    id: str | None = None
    outputs: list[Tensor]


WHY = {
    400: "The body is not what its content type says.",
    401: "A bearer token is needed.",
    403: "This is not allowed here.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    409: "What is served does not allow it: no adapter is named, and there are several; or none can be loaded.",
    413: "The body is too large.",
    415: "The content type is another.",
    421: "The server is called by a name that is not its own.",
    422: "Something that was asked cannot be answered, such as an image that cannot be read.",
    500: "The device failed.",
    503: "Too much is waiting, or the server is not ready: ask again later.",
    504: "The deadline is over.",
}
"""Of each status that is no answer."""

ANSWERING = (400, 401, 404, 408, 409, 413, 415, 421, 422, 500, 503, 504)
LOOKING = (401, 404, 421)
ADMINISTERING = (401, 403, 404, 409, 421, 422, 500, 503)


def said(
    summary: str, answer: type[BaseModel] | None, errors: Sequence[int], body: Any = None, error: Any = Error
) -> dict[str, Any]:
    """The arguments of a route that describe it.

    Args:
        answer: of status 200; None where it is described elsewhere.
        errors: the other statuses.
        body: of the request.
        error: what they are answered with.
    """
    found: dict[Any, Any] = {status: {"model": error, "description": WHY[status]} for status in errors}
    if answer is not None:
        found[200] = {"model": answer, "description": "The answer."}
    return {
        "summary": summary,
        "responses": found,
        "openapi_extra": {} if body is None else {"requestBody": {"required": True, "content": body}},
    }


def _adapter(description: str) -> dict[str, Any]:
    return {"type": "string", "maxLength": LONGEST_FIELD, "description": description, "examples": ["pets"]}


def _top(settings: Settings) -> dict[str, Any]:
    return {"type": "integer", "minimum": 1, "maximum": MOST, "default": TOP, "description": "classes that are told"}


def files(settings: Settings, top: bool) -> dict[str, Any]:
    """The body of a request about image files: a form, or JSON."""
    more = {"top_k": _top(settings)} if top else {}
    usual = "whom to ask; may be left out where only one is served" if top else "left out: the bare backbone"
    file = {"type": "string", "format": "binary", "description": "an image file: JPEG, PNG, WebP, TIFF, BMP or GIF"}
    one = {
        "type": "object",
        "properties": {
            "data": {"type": "string", "contentEncoding": "base64", "format": IMAGE, "description": "an image file"},
            "adapter": _adapter("of this image alone"),
        },
        "required": ["data"],
        "additionalProperties": False,
    }
    several = {"minItems": 1, "maxItems": settings.images}
    form = {
        "images": {"type": "array", "items": file, **several},
        "adapter": {"type": "array", "items": _adapter(f"{usual}; once, or once an image"), **several},
        **more,
    }
    in_json = {"images": {"type": "array", "items": one, **several}, "adapter": _adapter(usual), **more}
    return {FORM: {"schema": _of(form)}, JSON: {"schema": _of(in_json), "example": {"images": [{"data": PIXEL}]}}}


def tensors(settings: Settings) -> dict[str, Any]:
    """The body of a request of the Open Inference Protocol."""
    numbers = {"type": "array", "items": {}}
    tensor = {
        "name": {"const": "images"},
        "datatype": {"enum": ["UINT8", "BYTES"]},
        "shape": {
            "type": "array", "items": {"type": "integer", "minimum": 0}, "description": "[n, height, width, 3], or [n]",
        },
        "data": {**numbers, "description": "pixels, flat or nested as the shape is, or files in base64"},
        "parameters": {"type": "object"},
    }  # fmt: skip
    output = {
        "type": "object",
        "properties": {"name": {"enum": ["logits", "probabilities"]}, "parameters": {"type": "object"}},
        "required": ["name"],
        "additionalProperties": False,
    }
    one = {
        "type": "object", "properties": tensor, "required": ["name", "datatype", "shape", "data"],
        "additionalProperties": False,
    }  # fmt: skip
    schema = {
        "type": "object",
        "properties": {
            "id": {"type": "string", "maxLength": 200},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": one, "minItems": 1, "maxItems": 1},
            "outputs": {"type": "array", "items": output},
        },
        "required": ["inputs"],
        "additionalProperties": False,
    }
    example = {"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1], "data": [PIXEL]}]}
    return {JSON: {"schema": schema, "example": example}}


def _of(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": ["images"], "additionalProperties": False}
