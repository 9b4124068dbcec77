"""What an adapter's file says of it beside its tensors, as one JSON text in the metadata of the safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from convert.problem import known
from mlx_peft.config.combination import Origin
from mlx_peft.config.methods import Method
from mlx_peft.config.quantization import QAT, Quantization
from mlx_peft.config.schema import Model
from mlx_peft.config.tokens import Reducer
from mlx_peft.core.errors import UserError
from mlx_peft.core.json_io import from_json
from mlx_peft.core.problems import in_a_line, of_value
from mlx_peft.tasks.registry import USUAL
from mlx_peft.vit.architecture import Architecture, Preprocessing

METADATA = "mlx_peft"
"""The text's key in the metadata."""

DAMAGE = (ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError, RecursionError)
"""These errors come of tensors of other shapes, or a configuration of other types, than the method's."""


class Description(BaseModel):
    """All of an adapter but its tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method
    classes: tuple[str, ...]
    model: Model | None
    architecture: Architecture | None
    preprocessing: Preprocessing | None
    base_sha256: str | None
    source: str
    quantize: Quantization | None = None
    qat: QAT | None = None
    origin: Origin | None = None
    tokens: Reducer | None = None
    problem_type: Annotated[str, AfterValidator(known)] = USUAL.name


def described(metadata: dict[str, str], path: Path) -> Description:
    """What a file's metadata says. Raises UserError where it is not understood."""
    try:
        return Description.model_validate(from_json(metadata[METADATA]))
    except ValidationError as error:
        faults = in_a_line(error, Description)
        raise UserError(
            f"{path}: its metadata is not understood ({faults}); was it written by a later version?"
        ) from error
    except DAMAGE as error:
        raise UserError(f"{path}: not an adapter of the method its metadata names: {of_value(error)}") from error
