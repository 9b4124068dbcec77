"""What a Vision Transformer is made of, and how its images are prepared: the facts a name stands for.

Field names are the keyword arguments of timm's ``VisionTransformer``, and of its ``Eva`` for what only that has, with
strings where timm passes classes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from mlx_peft.core.bounds import LARGEST
from mlx_peft.core.text import counted
from mlx_peft.vit.places import PATCH, Kind, Places

MOST_PIXELS = 4096
"""A side of a model's input has at most so many pixels: timm's largest has 1,024."""


LATER = (
    "family",
    "positions",
    "qkv",
    "rope_grid",
    "rope_temperature",
    "rope_grid_offset",
    "rope_grid_indexing",
    "rope_rotate_half",
    "ref_feat_shape",
    "attn_pool_num_heads",
    "attn_pool_mlp_ratio",
    "post_norm",
)
"""Earlier versions do not know these fields: at their defaults they are left out of files, which stay as they were."""

ROTARY = ("rotary", "mixed")
"""The positions that turn queries and keys."""

RELATIVE = ("relative", "relative_shared")
"""The positions that are added to scores."""


class Architecture(BaseModel):
    """Everything that decides the shapes and the forward pass of a ViT, the number of classes apart.

    The upper bounds are far above any of timm's models: what a configuration claims must not fill the memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    family: Literal["vit", "eva", "beit"] = Field(
        "vit",
        description="timm's class; eva, beit: layer scales on the block, gamma_1 and gamma_2; other initial values",
    )
    img_size: int = Field(224, ge=1, le=MOST_PIXELS, description="side of the square input image, pixels")
    patch_size: int = Field(16, ge=1, le=1024, description="side of a square patch, pixels")
    embed_dim: int = Field(768, ge=1, le=65536)
    depth: int = Field(12, ge=1, le=512)
    num_heads: int = Field(12, ge=1, le=4096)
    mlp_ratio: float = Field(4.0, gt=0, le=64)
    qkv: Literal["fused", "biases_apart", "split"] = Field(
        "fused",
        description="how q, k and v are stored: as the rows of one layer; biases_apart: q_bias and v_bias beside it, "
        "and none for k; split: as three layers, k_proj without a bias",
    )
    qkv_bias: bool = True
    proj_bias: bool = Field(True, description="biases of proj, fc1 and fc2")
    qk_norm: bool = False
    scale_attn_norm: bool = Field(False, description="a norm between attention and proj")
    scale_mlp_norm: bool = Field(False, description="a norm between the activation and fc2")
    init_values: float | None = Field(None, ge=-LARGEST, le=LARGEST, description="of layer scale; null: none")
    class_token: bool = True
    reg_tokens: int = Field(0, ge=0, le=1024)
    distilled: bool = Field(False, description="a distillation token and its own head; logits are the mean of both")
    positions: Literal["learnt", "rotary", "mixed", "relative", "relative_shared"] = Field(
        "learnt",
        description="what attention knows of places; learnt: nothing; rotary: q and k of patches are turned; mixed: "
        "turned by angles whose frequencies are trained, for each block and head; relative: a trained number for each "
        "distance, head and block is added to the scores; relative_shared: the same for all blocks",
    )
    pos_embed: bool = Field(True, description="learnt positions, added to the tokens before the blocks")
    no_embed_class: bool = Field(False, description="the position embedding covers patches only")
    rope_grid: Literal["index", "centered"] = Field(
        "index", description="coordinates of rotary positions: whole numbers, or from -1 to 1, times 2 pi"
    )
    rope_temperature: float = Field(10000.0, ge=1, le=LARGEST, description="of rotary positions' periods")
    rope_grid_offset: float = Field(0.0, ge=-LARGEST, le=LARGEST, description="added to the coordinates")
    rope_grid_indexing: Literal["ij", "xy"] = Field("ij", description="rows before columns, or columns before rows")
    rope_rotate_half: bool = Field(False, description="channels are turned in pairs (i, i + d/2), not (2i, 2i + 1)")
    ref_feat_shape: int | None = Field(
        None,
        ge=1,
        le=MOST_PIXELS,
        description="side of the grid that rotary coordinates are scaled to; null: its own",
    )
    post_norm: bool = Field(
        False, description="blocks normalise what attention and MLP give, not what they read; init_values: of the norms"
    )
    pre_norm: bool = False
    final_norm: bool = True
    fc_norm: bool | None = Field(None, description="final norm after pooling; null: only where global_pool is avg")
    global_pool: Literal["token", "avg", "map", "token_avg"] = Field(
        "token", description="token_avg: the class token beside the mean of the patches, twice the width"
    )
    pool_include_prefix: bool = False
    attn_pool_num_heads: int | None = Field(None, ge=1, le=4096, description="of global_pool map; null: num_heads")
    attn_pool_mlp_ratio: float | None = Field(None, gt=0, le=64, description="of global_pool map; null: mlp_ratio")
    act_layer: Literal["gelu", "gelu_tanh", "quick_gelu", "silu"] = "gelu"
    mlp_layer: Literal["mlp", "swiglu", "swiglu_packed"] = "mlp"
    norm_layer: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: float = Field(1e-6, ge=0, le=1)
    embed_norm: bool = Field(False, description="a norm inside the patch embedding")

    @model_validator(mode="after")
    def _coherent(self) -> Architecture:
        if self.img_size < self.patch_size:
            raise ValueError(f"img_size {self.img_size} is smaller than patch_size {self.patch_size}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if self.positions in ROTARY and self.head_dim % 4:
            raise ValueError(f"rotary positions need heads of a multiple of 4 channels, not {self.head_dim}")
        if self.positions in RELATIVE and not self.class_token:
            raise ValueError(f"positions {self.positions!r} need class_token: true")
        if self.embed_dim % self.pool_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of attn_pool_num_heads {self.pool_heads}")
        if self.hidden_dim < 1 + (self.mlp_layer == "swiglu_packed"):
            raise ValueError(f"mlp_ratio {self.mlp_ratio} of embed_dim {self.embed_dim} leaves the MLP no hidden layer")
        if self.mlp_layer == "swiglu_packed" and self.hidden_dim % 2:
            raise ValueError(
                f"mlp_ratio {self.mlp_ratio} of embed_dim {self.embed_dim} gives mlp_layer 'swiglu_packed' a hidden "
                f"layer of {self.hidden_dim}, which has no equal halves"
            )
        if self.global_pool in ("token", "token_avg") and not self.class_token:
            raise ValueError(f"global_pool {self.global_pool!r} needs class_token: true")
        if self.global_pool == "token_avg" and (self.norm_after_pool or self.distilled):
            raise ValueError("global_pool 'token_avg' goes with neither fc_norm nor distilled")
        return self

    @model_serializer(mode="wrap")
    def _written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {name: value for name, value in dump(self).items() if name not in LATER or value != fields[name].default}

    @property
    def grid_size(self) -> int:
        """Patches along one side; pixels past the last whole patch are left out, as timm's convolution does."""
        return self.img_size // self.patch_size

    @property
    def dimensions(self) -> str:
        """What decides how large a model is, for a person: ``embed_dim 768, depth 12, 197 tokens``."""
        return f"embed_dim {self.embed_dim:,}, depth {self.depth}, {counted(len(self.places), 'token')}"

    @property
    def border_note(self) -> str | None:
        """What a person is told of the pixels that reach no patch; None where img_size is a multiple of patch_size."""
        past = self.img_size % self.patch_size
        if not past:
            return None
        seen = self.img_size - past
        share = 1 - (seen / self.img_size) ** 2
        return (
            f"image size {self.img_size} is no multiple of the patch size {self.patch_size}: the last {past} rows and "
            f"columns, {100 * share:.1f} % of the pixels, reach no patch; {seen} and {seen + self.patch_size} are the "
            "nearest multiples"
        )

    @property
    def places(self) -> Places:
        """What stands where among the tokens that enter the blocks, without a method's."""
        runs: tuple[tuple[Kind, int], ...] = (
            ("class", int(self.class_token)),
            ("distillation", int(self.distilled)),
            ("register", self.reg_tokens),
            (PATCH, self.grid_size**2),
        )
        return Places(tuple(run for run in runs if run[1]))

    @property
    def widest_outputs(self) -> int:
        """How many numbers a block's widest layer gives of one image: the MLP's first, or qkv."""
        return len(self.places) * max(self.hidden_dim, 3 * self.embed_dim)

    @property
    def num_prefix_tokens(self) -> int:
        """Class, distillation and register tokens that stand before the patches."""
        return len(self.places) - self.places.count(PATCH)

    @property
    def position_tokens(self) -> int:
        """Length of the position embedding."""
        return self.places.count(PATCH) if self.no_embed_class else len(self.places)

    @property
    def kinds_read(self) -> tuple[Kind, ...] | None:
        """Of which kinds the tokens are that the heads read after the last block; None where pooling reads all."""
        if self.global_pool != "token":
            return None
        return ("class", "distillation") if self.distilled else ("class",)

    @property
    def tokens_read(self) -> int | None:
        """How many tokens the heads read after the last block; None where pooling reads all of them."""
        return None if self.kinds_read is None else len(self.places.only(self.kinds_read))

    @property
    def norm_after_pool(self) -> bool:
        """Whether the final norm is ``fc_norm`` (after pooling) rather than ``norm`` (before)."""
        return self.global_pool == "avg" if self.fc_norm is None else self.fc_norm

    @property
    def layer_scale(self) -> bool:
        """Whether blocks have layer scales. timm's ``Eva`` has them at 0 too, where ViT and BEiT have none."""
        if self.init_values is None or self.post_norm:
            return False
        return self.init_values != 0 or self.family == "eva"

    @property
    def feature_dim(self) -> int:
        """Width of what a head reads."""
        return 2 * self.embed_dim if self.global_pool == "token_avg" else self.embed_dim

    @property
    def head_dim(self) -> int:
        """Width of a head of the blocks' attention."""
        return self.embed_dim // self.num_heads

    @property
    def pool_heads(self) -> int:
        """Heads of the attention pooling."""
        return self.attn_pool_num_heads or self.num_heads

    @property
    def pool_hidden_dim(self) -> int:
        """Width of the hidden layer of the attention pooling's MLP."""
        return int(self.embed_dim * (self.attn_pool_mlp_ratio or self.mlp_ratio))

    @property
    def hidden_dim(self) -> int:
        """Width of the MLP's hidden layer."""
        return int(self.embed_dim * self.mlp_ratio)


Mean = Annotated[float, Field(ge=-1000, le=1000)]
Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]
"""A deviation is not near zero, by which nothing can be divided. Both leave room for values in 0..255."""


class Preprocessing(BaseModel):
    """How images were prepared for the weights: they must be prepared so again."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mean: tuple[Mean, Mean, Mean] = Field(description="per channel, of values in 0..1")
    std: tuple[Deviation, Deviation, Deviation]
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    crop_pct: float = Field(0.875, ge=0.01, le=1, description="evaluation: crop side / resized side")
    crop_mode: Literal["center", "squash", "border"] = "center"

    @property
    def inside(self) -> tuple[object, ...]:
        """What of it happens inside the network, to all images of a batch alike; each may be cropped otherwise."""
        return self.mean, self.std, self.interpolation
