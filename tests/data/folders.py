"""Folders of small images, opened as a set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from mlx_peft.config import schema
from mlx_peft.data import Dataset, open_dataset


def made(root: Path, *folders: str, count: int = 2) -> Path:
    """Folders of images; a name with a suffix is a file: of an image where it is called like one."""
    for number, name in enumerate(folders):
        files = [root / name] if "." in Path(name).name[1:] else [root / name / f"{n}.png" for n in range(count)]
        for place, path in enumerate(files):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in (".png", ".jpg"):
                Image.new("RGB", (8, 8), (20 * number, 9 * place, 0)).save(path)
            else:
                path.write_text("no image")
    return root


def opened(root: Path, **data: object) -> Dataset:
    """Without a split that is held out."""
    dataset = open_dataset(schema.Data(name="folder", root=root, split=schema.Split(val=0), **data))
    return replace(dataset, notes=tuple(note for note in dataset.notes if not note.startswith("data.split.val")))


def sizes(dataset: Dataset) -> dict[str, int]:
    return {name: split.size for name, split in dataset.splits.items()}
