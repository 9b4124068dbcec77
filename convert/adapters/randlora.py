"""RandLoRA as Hugging Face PEFT keeps it: two small matrices a layer, and once for all layers the random A and B."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convert.adapters.block_layers import by_kind, by_layer, must_ask_no_more, understood
from convert.adapters.format import Format
from convert.adapters.targeting import target_modules, where
from convert.files import listed
from mlx_peft.adaptation.projections import bases
from mlx_peft.config.methods import RandLoRA
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.sites import PARTS

TRAINED = LAMBDA, GAMMA = "randlora_lambda", "randlora_gamma"
OURS = ("shared.randlora_A", "shared.randlora_B")
THEIRS = ("base_model.randlora_A", "base_model.randlora_B")
"""The bases' names; PEFT keeps them beside the model, and saves them once more for each layer."""

COPIES = (".randlora_A", ".randlora_B")
"""The endings of these copies' names."""

READ = {
    *("r", "randlora_alpha", "randlora_dropout", "projection_prng_key", "save_projection", "sparse", "very_sparse"),
    "init_weights",
}


def pack(method: RandLoRA, tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Configuration and tensors for PEFT, the bases always among them."""
    packed = {name: tensor for name, tensor in tensors.items() if name not in OURS}
    layers = [name.rpartition(".")[0] for name in packed if name.endswith(f".{LAMBDA}")]
    config = {
        "r": method.rank,
        "randlora_alpha": method.alpha,
        "randlora_dropout": method.dropout,
        "projection_prng_key": method.projection_key,
        "save_projection": True,
        "sparse": method.bases == "sparse",
        "very_sparse": method.bases == "very_sparse",
        "bias": "none",
        "fan_in_fan_out": False,
        "init_weights": True,
        "target_modules": target_modules(layers, every_block=method.blocks is None),
    }
    return config, packed | {theirs: tensors[ours] for ours, theirs in zip(OURS, THEIRS, strict=True)}


def unpack(method: RandLoRA, packed: Tensors) -> Tensors:
    """What ``pack`` was given, bit for bit. Raises ValueError where the tensors are not of this method."""
    tensors, layers = by_kind(_small(packed), TRAINED, "RandLoRA")
    shared = {ours: packed[theirs] for ours, theirs in zip(OURS, THEIRS, strict=True)}
    return tensors | shared | {f"{layer}.{last}": t for layer, held in layers.items() for last, t in held.items()}


def apart(method: RandLoRA, tensors: Tensors) -> Tensors:
    """The tensors themselves. Raises UserError where a whole qkv is adapted."""
    if "qkv" in method.targets:
        raise UserError(
            "RandLoRA on a whole qkv has no equal where q, k and v are layers of their own: they would share the rows "
            "of its random matrices, and have rows of their own here"
        )
    return tensors


def from_peft(config: dict[str, Any], packed: Tensors, path: Path) -> tuple[RandLoRA, Tensors]:
    """An adapter that PEFT itself wrote for a timm ViT. Bases that it did not save are drawn from their key.

    Raises:
        UserError: for what is more than the method on the linear layers of the blocks, and where bases were not saved
            and the file does not say how large they are.
    """
    must_ask_no_more(config, READ, path)
    layers = by_layer(_small(packed), TRAINED, "RandLoRA", path)
    targets, blocks = where(config, layers, path)
    with understood(RandLoRA, "RandLoRA", path):
        sparse = "very_sparse" if config.get("very_sparse") else "sparse" if config.get("sparse") else "uniform"
        method = RandLoRA.model_validate({
            "rank": config["r"],
            "alpha": config.get("randlora_alpha", 640),
            "dropout": config.get("randlora_dropout", 0),
            "bases": sparse,
            "projection_key": config.get("projection_prng_key", 0),
            "targets": targets,
            "blocks": blocks,
        })  # fmt: skip
    _must_be_of(method.rank, layers, path)
    if config.get("save_projection", True):
        if missing := [name for name in THEIRS if name not in packed]:
            raise UserError(f"{path}: it says that its projections were saved, and {missing[0]} is missing")
        shared = packed[THEIRS[0]], packed[THEIRS[1]]
        if (shared[0].shape[:2], shared[1].shape[2:]) != ((method.rank, 1), (method.rank,)):
            raise UserError(
                f"{path}: its random matrices A {shared[0].shape} and B {shared[1].shape} are not of the rank "
                f"{method.rank}: they should be (r, 1, width) and (height, count, r)"
            )
    else:
        shared = bases(method, *_sizes(layers, path))
    tensors = {name: tensor for name, tensor in packed.items() if is_head(name)}
    tensors |= {f"{layer}.{last}": tensor for layer, held in layers.items() for last, tensor in held.items()}
    return method, tensors | dict(zip(OURS, shared, strict=True))


def _must_be_of(rank: int, layers: dict[str, Tensors], path: Path) -> None:
    """Raises UserError where what a layer trains is not of the rank that the configuration says."""
    for layer, tensors in layers.items():
        scale, gamma = tensors[LAMBDA].shape, tensors[GAMMA].shape
        if len(gamma) != 2 or scale != (rank, gamma[0]) or gamma[0] != -(-gamma[1] // rank):
            raise UserError(
                f"{path}: {layer} has a {LAMBDA} {scale} and a {GAMMA} {gamma}, and the rank is {rank}: they should be "
                "(r, n) and (n, width), n being width / r rounded up"
            )


def _small(packed: Tensors) -> Tensors:
    """All but the bases."""
    return {name: tensor for name, tensor in packed.items() if name not in THEIRS and not name.endswith(COPIES)}


def _sizes(layers: dict[str, Tensors], path: Path) -> tuple[int, int]:
    """The widths of the bases, from those of the attention's layers, which follow from one another.

    Raises UserError where a layer of the MLP is adapted: a layer's tensors have its smaller width alone.
    """
    names = {layer.rpartition(".")[2] for layer in layers}
    if mlp := sorted(name for name in names if name not in ("qkv", "proj")):
        raise UserError(
            f"{path}: its projections were not saved, and what it has of {listed(mlp)} does not say how large they "
            "are: save it again with save_projection=True"
        )
    width = max(tensors[GAMMA].shape[-1] for tensors in layers.values())
    return width, width * len(PARTS) if "qkv" in names else width


def notes(method: RandLoRA, tensors: Tensors) -> list[str]:
    """That PEFT warns where nothing is missing."""
    return [
        "Hugging Face PEFT warns that each layer's randlora_A and randlora_B are missing: all layers share those that "
        "the file has once, which it uses"
    ]


FORMAT = Format("RANDLORA", pack, unpack, from_peft, apart, notes)
"""How its adapters lie on disk."""
