"""What a data set states about itself, and whether what was found on the disk is it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError, suggest
from mlx_peft.core.text import counted, printable
from mlx_peft.data.dataset import Split
from mlx_peft.data.looking import Watch
from mlx_peft.data.names import EXAMPLES
from mlx_peft.tasks.single_label import SINGLE_LABEL
from mlx_peft.tasks.task import Task

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Variant:
    """One way to use a set: a protocol, a partition, an image size.

    sizes: the published number of images of each split that the set has; none where it is the user's own.
    shares: what is held out of the training images where the set has no such split; None: what `data.split` says.
    """

    name: str = "standard"
    description: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    shares: Mapping[str, float] | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """What a reader found: class names, and the splits that the set itself has (``train`` always)."""

    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Entry:
    """A data set: how it is read, and what its authors say about it.

    classes, names: how many classes there are, and what they are called; None where the set is the user's own, or where
    its files do not say. variants: the first is the default. near_duplicates: images that are nearly the same are many,
    and are kept together when splits are made. columns: whether `data.columns` means anything. task: what its labels
    are.
    """

    read: Callable[[schema.Data, Variant, Watch], Found]
    description: str
    source: str
    licence: str
    classes: int | None = None
    names: tuple[str, ...] | None = None
    variants: tuple[Variant, ...] = (Variant(),)
    near_duplicates: bool = False
    columns: bool = False
    task: Task = SINGLE_LABEL

    @property
    def published(self) -> bool:
        """Whether its sizes are known; else it is the user's own."""
        return bool(self.variants[0].sizes)

    def variant(self, name: str, wanted: str | int | None) -> Variant:
        """The variant that is asked for. Raises UserError where there is no such one."""
        known = {variant.name: variant for variant in self.variants}
        if wanted is None:
            return self.variants[0]
        if str(wanted) not in known:
            raise UserError(
                f"data.variant: {name} has no variant {str(wanted)!r}{suggest(str(wanted), known)}; "
                f"there is {', '.join(known)}"
            )
        return known[str(wanted)]

    def check(self, found: Found, variant: Variant, where: str) -> None:
        """Raises UserError, which says what was found, where classes, labels or sizes are not the set's."""
        self._check_classes(found.classes, where)
        for name in SPLITS:
            split, size = found.splits.get(name), variant.sizes.get(name)
            if size is not None and (split is None or split.size != size):
                count = 0 if split is None else split.size
                raise UserError(
                    f"{where}: {counted(count, f'{name} image')}, not {size:,}: it is not the whole set, or another one"
                )
            if split is not None:
                _check_labels(split, len(found.classes), where)
        _check_apart(found.splits, where)

    def _one_class(self) -> str:
        """What may be wrong where all images are of one class."""
        return "is data.columns.label another column?" if self.columns else "is data.root a level too high?"

    def _check_classes(self, classes: tuple[str, ...], where: str) -> None:
        for name in classes:
            try:
                name.encode()
            except UnicodeEncodeError:  # a folder's, say: results and reports could not be written after training
                raise UserError(
                    f"{where}: the class name '{printable(name)}' is not text in UTF-8: rename it"
                ) from None
        if len(classes) < self.task.fewest:
            raise UserError(
                f"{where}: there is only one class, {classes[0]!r}, and nothing to tell it from: {self._one_class()}"
            )
        if len(set(classes)) != len(classes):
            twice = sorted(name for name in set(classes) if classes.count(name) > 1)
            raise UserError(f"{where}: two classes have the name {twice[0]!r}")
        if self.names is not None and set(classes) != set(self.names):
            missing, more = (sorted(set(a) - set(b)) for a, b in ((self.names, classes), (classes, self.names)))
            parts = [f"no {examples(missing)}"] * bool(missing) + [f"{examples(more)}, which it does not have"] * bool(
                more
            )
            raise UserError(f"{where}: the classes are not the set's: {'; '.join(parts)}")
        if self.classes is not None and len(classes) != self.classes:
            raise UserError(
                f"{where}: {counted(len(classes), 'class')}, not {self.classes}: it is not the whole set, or another "
                "one"
            )


def _check_labels(split: Split, classes: int, where: str) -> None:
    if not split.size:
        raise UserError(f"{where}: no {split.name} images")
    if (fault := split.task.fault(split.labels, classes)) is not None:
        raise UserError(f"{where}: {split.name} {fault}")


def _check_apart(splits: Mapping[str, Split], where: str) -> None:
    """That no image and no group of images is in two splits."""
    names = [name for name in SPLITS if name in splits]
    for place, name in enumerate(names[1:], 1):
        held = splits[name]
        listed = set(held.images.identifiers)
        if len(listed) != held.size:
            raise UserError(f"{where}: listed twice: {counted(held.size - len(listed), f'{name} image')}")
        for other in names[:place]:
            both = [image for image in splits[other].images.identifiers if image in listed]
            if both:
                raise UserError(f"{where}: {examples(both)} in {other} and in {name}: an image belongs to one split")
            ours, theirs = splits[other].groups, held.groups
            if ours is not None and theirs is not None and (shared := np.intersect1d(ours, theirs)).size:
                raise UserError(
                    f"{where}: {counted(shared.size, 'group')} (the first: {shared[0]}) with images in "
                    f"{other} and in {name}; a group belongs to one split"
                )


def examples(names: Sequence[str]) -> str:
    """The first of the names, and how many more there are."""
    listed = ", ".join(map(repr, names[:EXAMPLES]))
    return listed + (f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else "")
