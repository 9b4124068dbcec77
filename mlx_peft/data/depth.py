"""Whether images of 16 bits hold fewer, as scanners and converters of DICOM write them: nearly black once read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlx_peft.core.errors import UserError
from mlx_peft.data.dataset import EncodedImages, FileImages, Images
from mlx_peft.data.reading import stored_bits

LOOKED_AT = 16
"""So many images of a set are looked at, evenly spread: those that come from one machine are alike in this."""

LEVELS = 16
"""So many of 256 levels are left where the upper 4 of 16 bits are not used."""


def shallow(images: Images) -> tuple[str, ...]:
    """A note where all images of 16 bits, of the few that are looked at, use 12 of them at most; else none."""
    if not isinstance(images, FileImages | EncodedImages):
        return ()
    rows = np.unique(np.linspace(0, len(images) - 1, LOOKED_AT).astype(int)) if len(images) else ()
    looks = [look for row in rows if (look := _levels(images, int(row))) is not None]
    if not looks or max(looks) > LEVELS:
        return ()
    first = images.identifiers[0] if len(images) == 1 else f"{len(looks)} of {len(rows)} images looked at"
    return (
        f"{first}: 16 bits, of which the upper 4 are not used (12 bits?), so that at most {LEVELS} of 256 levels are "
        "left; stretch the values to the whole range and save them again",
    )


class Glance:
    """A few of many images, evenly spread, of which nobody knows how many will come."""

    def __init__(self) -> None:
        self._kept: list[str] = []
        self._every, self._seen = 1, 0

    def add(self, image: str) -> None:
        """An image's file, the next one."""
        if self._seen % self._every == 0:
            self._kept.append(image)
        self._seen += 1
        if len(self._kept) == 2 * LOOKED_AT:
            self._kept, self._every = self._kept[::2], 2 * self._every

    def notes(self) -> tuple[str, ...]:
        """See ``shallow``."""
        return shallow(FileImages(Path(), tuple(self._kept)))


def _levels(images: FileImages | EncodedImages, row: int) -> int | None:
    """How many of the darkest levels (where 0 is white in the file, the lightest) an image of 16 bits needs."""
    try:
        bits, inverted = stored_bits(images.encoded(row))
        if bits != 16:
            return None
        image = images.read(row)
    except (UserError, ValueError):  # said, or refused, elsewhere
        return None
    return 256 - int(image.min()) if inverted else 1 + int(image.max())
