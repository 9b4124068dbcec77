"""One batch whose rows have different adapters, in peft and here: does each row get what its own adapter alone says?

    python tests/bench/mixed_in_peft.py > experiments/results/mixed-in-peft.md
    python tests/bench/mixed_in_peft.py LORA IA3    # some of peft's types

Every type of adapter that peft has is put twice on a small timm ViT with random weights, two adapters with heads of
their own, all their numbers drawn. Each is asked alone (``set_adapter``), then both at once (``adapter_names``, a name
a row). Then the same folders, as peft has saved them, are opened here as a bank, and the same rows are asked of it.
"""

from __future__ import annotations

import math
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import peft
import timm
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import save_file

import mlx_peft
import torch_ref
from mlx_peft.core.errors import UserError, shortened
from mlx_peft.core.text import printable

NAME = "vit_tiny_patch16_224"
SIZE, WIDTH = 32, 64
ARGS: dict[str, Any] = {"patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 2}
NAMES = ("one", "two")
ROWS = ("one", "two", "two", "one", "two", "one")
SAME = 1e-4
"""Relative, float32: the same sums in another order. A wrong adapter's answer is off by a hundred times that."""

LINEAR = {"target_modules": ["qkv", "fc1"]}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("LORA", LINEAR | {"r": 4}),
    "rsLoRA": ("LORA", LINEAR | {"r": 4, "use_rslora": True}),
    "DoRA": ("LORA", LINEAR | {"r": 4, "use_dora": True}),
    "PiSSA": ("LORA", LINEAR | {"r": 4, "init_lora_weights": "pissa"}),
    "AdaLoRA": ("ADALORA", LINEAR | {"init_r": 4, "target_r": 2, "total_step": 10, "inference_mode": True}),
    "(IA)^3": ("IA3", {"target_modules": ["qkv", "fc2"], "feedforward_modules": ["fc2"]}),
    "VeRA": ("VERA", LINEAR | {"r": 8}),
    "LayerNorm tuning": ("LN_TUNING", {"target_modules": ["norm1", "norm2"]}),
}
"""What this product has too: a name, peft's type, and its options."""

NO_TARGETS = (
    *("ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING"),
    *("TRAINABLE_TOKENS", "XLORA"),
)
OTHERS: dict[str, dict[str, Any]] = {
    "C3A": LINEAR | {"block_size": 16},
    "VBLORA": LINEAR | {"vector_length": 16, "num_vectors": 16},
    **{kind: {} for kind in NO_TARGETS},
}
"""Of other types, options that they need on such a model; LINEAR for the rest."""


HEADS = {"none of their own": None, "3 and 3 classes": (3, 3), "3 and 5 classes": (3, 5)}
"""The heads of the two adapters."""

Sizes = tuple[int, int] | None


@dataclass(frozen=True)
class Verdict:
    """What came of a batch: how far off the worst of its rows is, relative; or why there is none."""

    off: float | None = None
    active: bool = False
    refused: str = ""

    def __str__(self) -> str:
        if self.off is None:
            return "refuses"
        if self.off <= SAME:
            return f"right ({self.off:.0e})"
        how = "rows of another head" if math.isinf(self.off) else f"{self.off:.1g}"
        return f"**wrong** ({how}{', all by the active adapter' * self.active})"


LONGEST = 180
"""A message is shown with so many letters."""


class Unfit(Exception):
    """peft cannot put such adapters on a ViT."""


def first_line(error: BaseException) -> str:
    text = printable(" ".join(str(error).split()))
    return f"{type(error).__name__}: {shortened(text, LONGEST)}"


def far(found: Any, expected: Any) -> float:
    """||a - b|| / ||b||; of logits of other classes it is infinite."""
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b)) if a.shape == b.shape else math.inf


def timms(classes: int = 3) -> torch.nn.Module:
    """timm's model: always the same, but for its head."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, img_size=SIZE, num_classes=0, **ARGS).eval()
    model.head = torch.nn.Linear(WIDTH, classes)
    return model


def two(kind: str, options: Mapping[str, Any], sizes: Sizes) -> Any:
    """Two adapters on one model, in peft; with heads of such sizes, or none of their own."""
    config = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
    settings = [config(**options, **({"modules_to_save": ["head"]} if sizes else {})) for _ in NAMES]
    model = peft.get_peft_model(timms(), settings[0], adapter_name=NAMES[0])
    model.add_adapter(NAMES[1], settings[1])
    for name, size in zip(NAMES, sizes or (), strict=False):
        model.base_model.model.head.modules_to_save[name] = torch.nn.Linear(WIDTH, size)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(f".{own}" in name for own in NAMES) and parameter.is_floating_point():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.eval()(torch.zeros(1, 3, SIZE, SIZE))  # some are put there, and then want a text
    return model


@torch.no_grad()
def mixed(model: Any, pixels: torch.Tensor) -> Verdict:
    """All rows at once, in peft, beside each by its own adapter alone."""
    expected = []
    for row, name in enumerate(ROWS):
        model.set_adapter(name)
        expected.append(model(pixels[row : row + 1])[0].numpy())
    model.set_adapter(NAMES[0])
    active = model(pixels).numpy()
    try:
        found = model(pixels, adapter_names=list(ROWS)).numpy()
    except Exception as error:  # whatever peft says to it
        return Verdict(refused=first_line(error))
    return Verdict(worst(found, expected), active=far(found, active) <= SAME)


def worst(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    return max(far(row, right) for row, right in zip(found, expected, strict=True))


@torch.no_grad()
def apart(folder: Path, sizes: tuple[int, int], pixels: torch.Tensor) -> list[np.ndarray]:
    """Each row's answer by peft, with its adapter alone on a model of its own, as it was saved."""
    models = {
        name: peft.PeftModel.from_pretrained(timms(size), folder / name).eval()
        for name, size in zip(NAMES, sizes, strict=True)
    }
    return [models[name](pixels[row : row + 1])[0].numpy() for row, name in enumerate(ROWS)]


def here(side: Any, folder: Path, images: np.ndarray, expected: list[np.ndarray]) -> Verdict:
    """The same rows by this product's bank, beside what peft says of each alone."""
    save_file({name: tensor.contiguous() for name, tensor in timms().state_dict().items()}, folder / "base.safetensors")
    weights = folder / "base.safetensors"
    model = side.create_model(NAME, weights=weights, image_size=SIZE, num_classes=3, args=ARGS, head="new")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of those that are refused: to ask them says it too
            found = side.load_adapters(model, folder).logits(images, list(ROWS))
    except UserError as error:
        return Verdict(refused=first_line(error).replace(f"{folder}/", ""))
    return Verdict(worst(found, expected))


def row(kind: str, options: Mapping[str, Any]) -> list[Verdict]:
    """peft with each kind of heads, then both backends of this product with the last.

    Raises Unfit where peft cannot put such adapters on the model.
    """
    images = np.random.default_rng(0).integers(0, 256, (len(ROWS), SIZE, SIZE, 3), np.uint8)
    ours = torch_ref.create_model(NAME, weights="none", image_size=SIZE, args=ARGS, num_classes=3)
    pixels = ours.pixels(images).permute(0, 3, 1, 2)
    try:
        models = [two(kind, options, sizes) for sizes in HEADS.values()]
    except Exception as error:  # whatever peft says to a model that is no language model
        raise Unfit(first_line(error)) from error
    verdicts = [mixed(model, pixels) for model in models]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        models[-1].save_pretrained(place, save_embedding_layers=False)
        expected = apart(folder, (3, 5), pixels)
        return verdicts + [here(side, folder, images, expected) for side in (torch_ref, mlx_peft)]


def cases(wanted: Sequence[str]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """What a type is called, its name in peft, and its options: those that this product has first."""
    yield from ((name, kind, options) for name, (kind, options) in CASES.items() if not wanted or kind in wanted)
    had = {kind for kind, _ in CASES.values()}
    for kind in sorted({kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING} - had):
        if not wanted or kind in wanted:
            yield kind, kind, OTHERS.get(kind, LINEAR)


HEADING = """\
# Batches that mix adapters, in peft and here

A batch of six images over two adapters of one base, each row with an adapter of its own: in peft by `adapter_names`,
here by a bank. Is each row what its own adapter says alone? The model is a timm ViT of random weights ({width} wide,
two blocks, {size} px), float32; the adapters' numbers are drawn, and each is one in peft's default form on `qkv` and
`fc1`.

- **right**: the worst row is off by this much, relative: by rounding.
- **wrong**: it is off by this much, and nothing is said. "All by the active adapter": the names had no effect.
- **refuses**: an error, which stands below the table.

Heads "none of their own": the rows share the model's head. Otherwise each adapter has one, `modules_to_save=["head"]`.
What is asked here are the folders with 3 and 5 classes as peft has saved them, beside peft with each adapter alone on a
model of its own. {versions}.

```
python tests/bench/mixed_in_peft.py > experiments/results/mixed-in-peft.md
```
"""


PISSA = """
As peft saves a PiSSA adapter it belongs on weights that peft has changed and not saved; peft's own conversion makes a
LoRA adapter of it. Those that are trained here are mixed: `tests/bank/test_mixed_batches.py`."""


def page(wanted: Sequence[str]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version(name)}" for name in ("peft", "timm", "torch", "mlx"))
    yield HEADING.format(width=WIDTH, size=SIZE, versions=versions)
    yield f"| adapter | {' | '.join(f'peft, heads: {heads}' for heads in HEADS)} | here, torch | here, MLX |"
    yield "|---|---|---|---|---|---|"
    said: dict[str, list[str]] = {}
    unfit: list[str] = []
    for name, kind, options in cases(wanted):
        try:
            verdicts = row(kind, options)
        except Unfit as error:
            unfit.append(f"- {name}: ``{error}``")
            continue
        yield f"| {' | '.join([name, *map(str, verdicts)])} |"
        for who, some in (("peft", verdicts[:3]), ("here", verdicts[3:])):
            for text in dict.fromkeys(verdict.refused for verdict in some if verdict.refused):
                said.setdefault(f"{who}: {text}".replace(f"'{kind}'", "'...'"), []).append(name)
    yield "\nWhat is said where a batch is refused:\n"
    yield from (f"- {', '.join(names)}: ``{text}``" for text, names in said.items())
    if any(name == "PiSSA" for name, *_ in cases(wanted)):
        yield PISSA
    if unfit:
        yield "\nTypes that peft could not put on this model, most of them made for language models:\n"
        yield from unfit


def main() -> None:
    warnings.simplefilter("ignore")
    for line in page(sys.argv[1:]):
        print(line, flush=True)


if __name__ == "__main__":
    main()
