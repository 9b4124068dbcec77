"""The beginnings of some files of a set that is too large to be tried: whether what is called an image is one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from mlx_peft.data.dataset import FileImages, Split
from mlx_peft.data.lists import printed
from mlx_peft.data.names import EXAMPLES
from mlx_peft.data.strangers import head_of, stranger

LOOKED_AT = 400
"""So many files of a split, evenly spread: where one in a hundred is no image, some are met in 98 cases of 100, and a
slow disk has shown them in seconds."""


def strange(splits: Mapping[str, Split]) -> tuple[str, ...]:
    """Notes about files that are called images and are known to be something else. Nothing is decoded."""
    notes = []
    for name, split in splits.items():
        images = split.images
        if not isinstance(images, FileImages) or not len(images):
            continue
        rows = np.unique(np.linspace(0, len(images) - 1, LOOKED_AT).astype(int))
        kinds = {images.paths[row]: stranger(head_of(images.root / images.paths[row])) for row in rows}
        for kind, count in Counter(filter(None, kinds.values())).most_common():
            paths = [path for path, found in kinds.items() if found == kind]
            few = ", ".join(printed(paths[:EXAMPLES])) + (", ..." if count > EXAMPLES else "")
            notes.append(f"{count} of the {len(rows)} files of {name} looked at are no images ({few}): {kind}")
    return tuple(notes)
