"""What the parity checks compare: models, methods, bits of the base, and which of their combinations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple, get_args

from mlx_peft.config.methods import Method
from mlx_peft.config.quantization import from_options
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError, suggest

BATCH, CLASSES, STEPS = 2, 10, 20

MODELS: dict[str, dict[str, object]] = {
    "vit_tiny_patch16_224": {},
    "deit_small_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "vit_base_patch16_224": {"args": {"depth": 2}},
    "vit_small_patch14_dinov2": {"image_size": 112},
    "vit_small_patch14_reg4_dinov2": {"image_size": 112},
    "vit_base_patch16_siglip_224": {"args": {"depth": 2}},
    "vit_small_patch16_dinov3": {"image_size": 112},
    "eva02_tiny_patch14_224": {"image_size": 112},
    "beit_base_patch16_224": {"image_size": 112, "args": {"depth": 2, "embed_dim": 384, "num_heads": 6}},
}
"""The models that are compared, some cut in depth, width or image size so that a run stays short."""


GROUP_SIZE = 64
"""Quantised cells have groups of so many inputs: the largest number that divides the width of every model."""


class Row(NamedTuple):
    """A method in the matrix: its options, and a learning rate under which its loss does not explode.

    Where it does (full fine-tuning at 1e-3), Adam magnifies rounding, and losses drift apart though gradients agree.
    """

    options: dict[str, object]
    lr: float = 1e-3
    steps: int | None = None
    """Of the trajectory; STEPS where None. A method that deals out ranks needs more to go through all of its phases;
    one that draws in every step has none."""
    qat: dict[str, object] | None = None
    """Codes that are trained through. Then there is no trajectory: a code is a step function of its weight, so that
    weights which differ by a rounding fall now and then on either side of a step, and the losses drift apart."""
    roundings: int = 8
    """That a gradient in half precision may be off by: see ``checks.precision``. More behind a ReLU, where a rounding
    decides on which side of zero a small value falls: the share of such values goes with the round-off, the error with
    its root, so that float16 has more roundings of its own (measured: 37 of them; bfloat16 9)."""


METHODS: dict[str, Row] = {
    "lora": Row({"rank": 8, "targets": ["qkv", "proj", "fc1", "fc2"]}),
    "lora-qv": Row({"rank": 8, "rslora": True, "targets": ["q", "v"]}),
    "lora-dora": Row({"rank": 8, "dora": True, "targets": ["qkv", "fc2"]}),
    "lora-pissa": Row({"rank": 8, "init": "pissa", "lora_plus": 4, "targets": ["v", "proj"]}),
    "lora-olora": Row({"rank": 8, "init": "olora", "dora": True, "targets": ["q", "fc1"]}),
    "lora-orthogonal": Row({"rank": 8, "init": "orthogonal", "targets": ["v", "fc2"]}),
    "lora-loftq": Row({"rank": 8, "init": "loftq", "loftq": {"steps": 2}, "dora": True, "targets": ["v", "fc2"]}),
    "lora-blocks": Row({"rank": 4, "targets": "all-linear", "blocks": "last 2", "rank_pattern": {"qkv": 8}}),
    "adalora": Row(
        {"init_rank": 8, "target_rank": 4, "t_init": 10, "t_final": 15, "delta_t": 3, "targets": ["q", "v", "fc1"]},
        steps=60,
    ),
    "qalora": Row({"rank": 8, "targets": ["qkv", "fc2"]}),
    "qalora-avg": Row({"rank": 8, "pool": "avg", "targets": ["q", "v", "fc1"]}),
    "vera": Row({"rank": 64, "targets": ["q", "v", "fc1"]}),
    "fact": Row({"rank": 8}),
    "ia3": Row({}),
    "ssf": Row({}),
    "boft": Row({"block_size": 8, "factors": 2, "targets": ["qkv", "fc2"]}),
    "road": Row({"group_size": 32, "variant": 2, "targets": ["q", "v", "fc1"]}),
    "loha": Row({"rank": 4, "targets": ["q", "v", "fc1"]}),
    "lokr": Row({"rank": 4, "targets": ["qkv", "fc2"]}),
    "miss": Row({"rank": 48, "targets": ["q", "v", "fc1"]}),
    "randlora": Row({"rank": 24, "alpha": 48, "targets": ["qkv", "fc2"]}),
    "pvera": Row({"rank": 64, "targets": ["q", "v", "fc1"]}, steps=0),  # each backend draws its own
    "oft": Row({"block_size": 16, "targets": ["qkv", "proj", "fc2"]}),
    "oft-exact": Row({"block_size": 16, "cayley": "exact", "block_share": True}),
    "adaptformer": Row({"dropout": 0}, roundings=48),  # each backend draws its own
    "adapter_plus": Row({"drop_path": 0}),
    "houlsby": Row({"bottleneck": 8}),
    "repadapter": Row({"dropout": 0}),
    "convpass": Row({"dropout": 0}),
    "lst": Row({}),
    "vpt": Row({}),
    "vpt-deep": Row({"deep": True}),
    "bitfit": Row({}),
    "layernorm": Row({}),
    "linear": Row({}),
    "lora-qat": Row({"rank": 8, "targets": "all-linear"}, qat={"bits": 4}),
    "lora-lsq": Row({"rank": 8, "targets": ["q", "v"]}, qat={"bits": 4, "scales": "learned"}),
    "full-qat": Row({}, lr=3e-5, qat={"bits": 4}),
    "full": Row({}, lr=3e-5),
    "full-blocks": Row({"blocks": "last 2"}, lr=3e-5),
}
"""The rows of the matrix; a name up to the first hyphen is the method's."""

QUANTIZED_MODELS = ("vit_tiny_patch16_224", "vit_small_patch14_dinov2")
QUANTIZED_METHODS = ("lora", "lora-dora", "lora-loftq", "adalora", "vera", "qalora", "qalora-avg")
"""These rows are also compared over quantised bases, or only over them."""

OVER_CODES = {kind.model_fields["name"].default for kind in get_args(get_args(Method)[0]) if kind.over_codes}
PLAIN_METHODS = tuple(
    name for name in METHODS if name.partition("-")[0] not in OVER_CODES and "loftq" not in METHODS[name].options
)

BITS = (8, 4, 3, 2)
"""A weight in those bases has so many bits."""

SMALL, CUT = "vit_tiny_patch16_224", {"image_size": 64, "args": {"depth": 3}}
"""The model on which every method is compared once, and what makes it small: three blocks, sixteen patches. What a
method does, it does in every block and row."""

FEW_BITS = 4
"""Of the base under a method that needs a quantised one, where it is compared once."""


@dataclass(frozen=True)
class Combination:
    """What one cell compares: a model under a row's method.

    Attributes:
        bits: of the base's weights; None: float32.
        cut: what makes the model smaller, as keys of an experiment's ``model``.
        tokens: what leaves fewer tokens, as an experiment has it; None: nothing.
    """

    model: str
    method: str
    bits: int | None = None
    cut: Mapping[str, Any] = field(default_factory=dict)
    tokens: Mapping[str, Any] | None = None

    @property
    def row(self) -> Row:
        return METHODS[self.method]

    @property
    def steps(self) -> int:
        """Of the trajectory; none where codes are trained through."""
        if self.row.qat is not None:
            return 0
        return STEPS if self.row.steps is None else self.row.steps

    def experiment(self, seed: int = 0) -> Experiment:
        """With random weights, so that nothing is downloaded."""
        return Experiment.model_validate(
            {
                "seed": seed,
                "model": {"name": self.model, "weights": "none", **self.cut},
                "method": {"name": self.method.partition("-")[0], **self.row.options},
                "quantize": self.bits and {"bits": self.bits, "group_size": GROUP_SIZE},
                "qat": self.row.qat,
                "tokens": self.tokens,
                "data": {"name": "digits", "batch_size": BATCH},
                "train": {"schedule": {"name": "constant"}, "clip_norm": 1.0, "label_smoothing": 0.1},
            }
        )


def combinations(
    models: Iterable[str], methods: Iterable[str], bits: Iterable[int | None] = (None,)
) -> list[Combination]:
    """Every one of them with every other, the models as MODELS has them, or whole where it does not."""
    return [
        Combination(model, method, width, MODELS.get(model, {}))
        for model, method, width in product(models, methods, bits)
    ]


def each_once(model: str | None = None, method: str | None = None, bits: int | None = None) -> list[Combination]:
    """Every method once on SMALL, or what the names select of that.

    Over float32, and over codes of FEW_BITS where a method needs them; with ``bits``, what can be over them is. Raises
    UserError as ``check``.
    """
    check(method, bits)
    if bits is None:
        chosen = [(name, FEW_BITS if name not in PLAIN_METHODS else None) for name in METHODS if method in (None, name)]
    else:
        chosen = [(name, bits) for name in ([method] if method else QUANTIZED_METHODS)]
    of, cut = (SMALL, CUT) if model is None else (model, MODELS.get(model, {}))
    return [Combination(of, name, width, cut) for name, width in chosen]


def whole(model: str | None = None, method: str | None = None, bits: int | None = None) -> list[Combination]:
    """The matrix, or the part of it that a model's name, a method's and the bits of the base select.

    Over plain bases every model meets every method; over quantised ones, what is not named is what QUANTIZED_MODELS and
    QUANTIZED_METHODS name. Raises UserError as ``check``.
    """
    check(method, bits)
    if bits is not None:
        return combinations([model] if model else QUANTIZED_MODELS, [method] if method else QUANTIZED_METHODS, [bits])
    models = [name for name in QUANTIZED_MODELS if model in (None, name)]
    methods = [name for name in QUANTIZED_METHODS if method in (None, name)]
    float_methods = [name for name in PLAIN_METHODS if method in (None, name)]
    return [*combinations([model] if model else MODELS, float_methods), *combinations(models, methods, BITS)]


def check(method: str | None, bits: int | None) -> None:
    """Raises UserError for a method that is no row, and for bits that no codes have."""
    if method is not None and method not in METHODS:
        raise UserError(f"no method {method!r} in the parity matrix{suggest(method, METHODS)}", arguments=("method",))
    if bits is not None:
        from_options(bits, GROUP_SIZE)
