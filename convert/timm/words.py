"""What more than one of timm's classes is told, with the types that the words have in ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mlx_peft.vit.architecture import Architecture

Names = Mapping[str, str]
"""Words that mean a field: timm's, and ours."""


class Words(BaseModel):
    """The arguments that timm's ``Eva`` and ``Beit`` have in common; all must be said.

    A value of another type is refused here, since fields are computed of it; what it may be besides is known to
    ``Architecture``. What is not here has one value alone: it may be said, and means nothing.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    img_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: Annotated[float, Field(gt=0, le=64)]
    qkv_bias: bool
    init_values: float | None
    global_pool: str
    scale_mlp: bool
    swiglu_mlp: bool
    use_abs_pos_emb: bool
    use_fc_norm: bool | None
    use_naflex: Literal[False] = False


def as_fields(said: Words, names: Names) -> dict[str, Any]:
    """The fields that words mean as they are."""
    return {ours: getattr(said, theirs) for theirs, ours in names.items()}


def as_words(architecture: Architecture, names: Names) -> dict[str, Any]:
    """The words that fields mean as they are: the reverse."""
    return {theirs: getattr(architecture, ours) for theirs, ours in names.items()}
