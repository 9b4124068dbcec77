"""Whether an adapter was trained on the base that a model has."""

from __future__ import annotations

from pathlib import Path

from convert.adapters.peft import CONFIG, Adapter
from mlx_peft.config.quantization import described
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import printable
from mlx_peft.library.framework import Network

RUNS = "adapter"
"""The folder of its adapter in a run's."""


def place_in(folder: Path) -> Path:
    """The folder of an adapter, or of a run the one in it. Raises UserError where there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    inside = folder / RUNS
    return inside if not (folder / CONFIG).exists() and (inside / CONFIG).exists() else folder


def must_stand_on(adapter: Adapter, network: Network, folder: str | Path) -> None:
    """Raises UserError where the adapter of a folder was trained on other weights, or over other codes of them.

    One that does not say what it was trained on, as PEFT's do not, is taken, where its head reads what the model pools.
    """
    pooled = dict(network.architecture)
    if odd := {field: value for field, value in adapter.fields.items() if pooled[field] != value}:
        raise UserError(f"{folder}: its head is of another pooling: create the model with args={odd}")
    if adapter.base_sha256 is None:
        return
    if adapter.base_sha256 != network.base.sha256:
        raise UserError(f"{folder} was trained on other weights than this model's ({printable(adapter.source)})")
    if adapter.quantize != network.quantization:
        raise UserError(
            f"{folder} was trained over a base with quantize: {described(adapter.quantize)}, and this model has "
            f"quantize: {described(network.quantization)}"
        )
