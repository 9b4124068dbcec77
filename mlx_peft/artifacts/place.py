"""Where an adapter and a model lie on disk."""

from __future__ import annotations

from pathlib import Path

from convert.adapters import lora_vit
from convert.adapters.peft import CONFIG
from mlx_peft.core.errors import Command, UserError, suggest
from mlx_peft.training.run import RunFolder
from mlx_peft.training.stop import again
from mlx_peft.training.whereabouts import adapter_in

MODEL_FILE = "config.json"


def find_adapter(path: Path, name: str | None) -> Path:
    """The adapter's folder that a path stands for. Raises UserError, with the names there are, where it is not one."""
    if lora_vit.is_one(path):
        raise UserError(
            f"{path} is an old file of LoRA-ViT: make a folder of it first",
            command=Command("to make one", ("convert", str(path), "FOLDER"), {"to": "peft"}),
        )
    if not path.is_dir():
        raise UserError(f"{path} is not a folder: name a run or an adapter")
    if name is None and (place := adapter_in(path)):
        return place
    several = {entry.name: place for entry in sorted(path.iterdir()) if entry.is_dir() and (place := adapter_in(entry))}
    if name in several:
        return several[name]
    if RunFolder(path).config.exists():
        if name is not None and adapter_in(path):
            raise UserError(f"{path} is one run, not a folder of adapters: leave the name {name!r} out")
        raise UserError(f"{path} is a run that is not finished: continue it first", command=again(RunFolder(path)))
    if not several:
        raise UserError(f"{path} holds no adapter ({CONFIG} is missing)")
    names = ", ".join(several)
    if name is None:
        raise UserError(
            f"{path} holds several adapters; choose one by its name: {names}", arguments=("adapter", "adapters")
        )
    raise UserError(f"{path} has no adapter {name!r}; it has {names}{suggest(name, several)}")


def is_model(path: Path) -> bool:
    """Whether a folder holds a whole model in timm's layout."""
    return (path / MODEL_FILE).is_file() and adapter_in(path) is None


def must_not_name(path: Path, weights: str | None) -> None:
    """Raises UserError where weights are named for a whole model, which has its own."""
    if weights is not None:
        raise UserError(f"{path} is a whole model, with weights of its own: leave them out", arguments=("weights",))
