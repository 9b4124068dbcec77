"""``predictions.npz``: what a finished run said of each image that it was measured on.

For each split three arrays, a row an image, in the split's own order: ``val_identifiers``, text, the set's own names of
the images, which are the same wherever it lies; ``val_logits``, float32 ``(n, classes)``; ``val_labels``, as the task
has them: int64 ``(n,)`` of a single label, uint8 ``(n, classes)`` of several. So two runs can be compared image by
image (a paired test). An image that could not be read has no row.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_peft.core.errors import UserError
from mlx_peft.data import Split
from mlx_peft.data.archives import names_in, read_npz
from mlx_peft.training.run import RunFolder

SPLITS = ("val", "test")
LARGEST = 2**32
"""An array of the file has at most so many bytes: a million images and a thousand classes have as many."""

MOST_NAMES = 2**30
"""Identifiers have at most so many bytes, four a letter: they become text in memory."""

DATE = (1980, 1, 1, 0, 0, 0)
"""All that is in the file is of this date, the first that such a file can have: equal runs have equal bytes."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model said of the images of a split.

    Attributes:
        identifiers: of the images, text ``(n,)``.
        logits: float32 ``(n, classes)``.
        labels: as the task has them, ``(n, ...)``.
    """

    identifiers: np.ndarray
    logits: np.ndarray
    labels: np.ndarray


class Recorder:
    """Keeps what a model says of a split, batch by batch."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._rows: list[np.ndarray] = []
        self._logits: list[np.ndarray] = []

    def __call__(self, rows: np.ndarray, logits: np.ndarray) -> None:
        """Some more: which of the split's images they are, int64 ``(n,)``, and their logits ``(n, classes)``."""
        self._rows.append(np.asarray(rows))
        self._logits.append(np.asarray(logits, np.float32))

    @property
    def predictions(self) -> Predictions:
        """All that was seen so far, one batch at least."""
        rows = np.concatenate(self._rows)
        identifiers = self._split.images.identifiers
        named = np.array([identifiers[row] for row in rows.tolist()], dtype=np.str_)
        return Predictions(named, np.concatenate(self._logits), self._split.labels[rows])


def encoded(found: Mapping[str, Predictions]) -> bytes:
    """The file's content, by split."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for split, one in found.items():
            for name, array in (("identifiers", one.identifiers), ("logits", one.logits), ("labels", one.labels)):
                member = zipfile.ZipInfo(f"{split}_{name}.npy", DATE)
                if array.dtype.kind != "f":  # what is random in a float does not become smaller
                    member.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(member, "w", force_zip64=True) as out:
                    np.lib.format.write_array(out, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def read_predictions(folder: Path) -> dict[str, Predictions] | None:
    """What a run, or a step of one, keeps of each split; None of one that keeps nothing: of before it was kept.

    Raises UserError where the file is damaged, or is not what a run writes.
    """
    run = RunFolder(folder)
    if not run.predictions.exists():
        return None
    if (size := run.predictions.stat().st_size) > 3 * LARGEST:
        raise UserError(f"{run.predictions} has {size:,} bytes, and no run's has more than {3 * LARGEST:,}")
    run.check_sum(run.predictions)
    splits = [split for split in SPLITS if f"{split}_logits" in names_in(run.predictions)]
    shapes = {
        f"{split}_{name}": shape
        for split in splits
        for name, shape in (("identifiers", (-1,)), ("logits", (-1, -1)), ("labels", (-1, ...)))
    }
    named = {name: shape for name, shape in shapes.items() if name.endswith("_identifiers")}
    arrays = read_npz(run.predictions, named, "text or numbers", MOST_NAMES)
    others = {name: shape for name, shape in shapes.items() if name not in named}
    arrays |= read_npz(run.predictions, others, "text or numbers", LARGEST)
    found = {
        split: Predictions(*(arrays[f"{split}_{name}"] for name in ("identifiers", "logits", "labels")))
        for split in splits
    }
    for split, one in found.items():
        if (fault := _fault(one)) is not None:
            raise UserError(f"{run.predictions}: {split} is not what a run writes: {fault}")
    return found


def _fault(one: Predictions) -> str | None:
    """What is wrong with the arrays of a split, if anything is."""
    if one.identifiers.dtype.kind != "U" or one.logits.dtype != np.float32 or one.labels.dtype.kind == "U":
        return "identifiers should be text, logits float32, and labels numbers"
    rows = len(one.identifiers)
    if not rows == len(one.logits) == len(one.labels):
        return f"{rows} identifiers, {len(one.logits)} rows of logits and {len(one.labels)} labels"
    if not np.isfinite(one.logits).all():
        return "there are NaN or infinite numbers in its logits"
    if len(set(one.identifiers.tolist())) < rows:
        return "two images have one identifier"
    return None
