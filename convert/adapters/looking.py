"""An adapter that is looked at before it is read: what it says of itself, with no tensor of its file in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from convert.adapters.description import METADATA, Description, described
from convert.adapters.peft import CONFIG, PREFIX, WEIGHTS, Adapter, read_adapter
from convert.files import describe_safetensors, read_json
from convert.problem import KEY
from mlx_peft.tasks.registry import TASKS


def look_at_adapter(folder: Path) -> tuple[Adapter, int]:
    """An adapter without its tensors, and how many rows its head has; 0 where it has none.

    One that PEFT wrote is read whole: it does not say otherwise what it is. Raises UserError as ``read_adapter`` does,
    as far as that can be seen.
    """
    path = folder / WEIGHTS
    layout, metadata = describe_safetensors(path) if path.exists() else ({}, {})
    if METADATA not in metadata:
        adapter = read_adapter(folder)
        return replace(adapter, tensors={}), len(adapter.tensors.get("head.weight", ()))
    read_json(folder / CONFIG)
    description = described(metadata, path)
    shared = {name: getattr(description, name) for name in Description.model_fields.keys() - {KEY}}
    _, shape = layout.get(f"{PREFIX}head.weight", ("", ()))
    return Adapter(tensors={}, task=TASKS[description.problem_type], **shared), next(iter(shape), 0)
