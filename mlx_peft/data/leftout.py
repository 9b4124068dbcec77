"""What was not taken of a set, as notes: and refusals that carry them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted, printable
from mlx_peft.data.lists import left_out
from mlx_peft.data.unread import Unread

FOREIGN = frozenset(
    {".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jpe", ".jfif", ".ppm", ".pgm", ".pbm", ".pnm", ".svg", ".psd"}
    | {".dcm", ".dicom", ".nii", ".npy", ".exr", ".hdr", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".ico", ".tga"}
)
"""Images with these suffixes are in formats that are not read."""


@dataclass
class LeftOut:
    """What was not taken, by name: files that are no images, links, images in litter, and images of no class."""

    others: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    litter: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)

    def notes(self) -> tuple[str, ...]:
        """A note of each kind that there is."""
        foreign = [name for name in self.others if _suffix(name) in FOREIGN]
        kinds = {
            "without the suffix of an image": [name for name in self.others if _suffix(name) not in FOREIGN],
            "links to folders or out of the root": self.links,
            "images in hidden files, or in what systems and tools leave behind": self.litter,
            "images outside of the class folders": self.loose,
        }
        notes = [left_out(kind, names) for kind, names in kinds.items() if names]
        if foreign:
            suffixes = ", ".join(suffix for suffix, _ in Counter(map(_suffix, foreign)).most_common())
            kind = f"images in formats that are not read, to be converted to JPEG ({suffixes})"
            notes.insert(0, left_out(kind, foreign))
        return tuple(notes)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def unlabelled(name: str, size: int) -> str:
    """The note about a split that is not used, since it has no images, or none with a label."""
    if not size:
        return f"left out, without images: {printable(name)}"
    return f"left out, without labels: {printable(name)}, {counted(size, 'image')}"


def unread_notes(unread: Unread | None) -> tuple[str, ...]:
    """A note of each split that has images which could not be read when they came up."""
    if unread is None:
        return ()
    images = {split: [broken.image for broken in unread.of(split)] for split in unread.splits}
    return tuple(
        f"{left_out(f'unreadable in {split}', names)}; they count in no loss and no metric"
        for split, names in images.items()
    )


@contextmanager
def with_notes(notes: Callable[[], Iterable[str]]) -> Iterator[None]:
    """Has a refusal of the block say what is noted up to there, where it does not say so itself."""
    try:
        yield
    except UserError as error:
        text = str(error)
        more = [note for note in notes() if note not in text]
        noted = "\n  note: ".join([text, *more])
        raise UserError(noted, arguments=error.arguments, command=error.command) from error
