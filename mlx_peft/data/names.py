"""How people spell what a set is made of: its splits, its columns, and letters with accents."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "evaluation": "val",
    "test": "test",
    "testing": "test",
}
"""Splits are called so, in lower case."""

_SECOND = ("trainval", "eval")
"""These name a split only where no other folder or file is called like it."""

CONTAINERS = frozenset(
    {"image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "jpg", "jpeg", "jpegimages", "png"}
    | {"data", "dataset", "set", "split", "folder", "dir", "files"}
)
"""These words say nothing but that images are in it, in lower case: in a split's name (``test_set``), or a folder's
own."""

EXAMPLES = 3
"""A message or a note that is about many names gives so many of them."""

_TOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_a-zA-Z]+|\d+")


def spelled(text: str) -> str:
    """The text in Unicode's composed form (NFC), so that its two spellings are one: a Mac may write the other."""
    return unicodedata.normalize("NFC", text)


def folded(text: str) -> str:
    """A column's name by its letters and digits alone, in lower case: ``Patient ID``, ``patient_id``, ``PatientID``."""
    return re.sub(r"[\W_]+", "", spelled(text).casefold())


def split_of(name: str) -> tuple[str, str] | None:
    """The split that a name says, and what else it says: ``("train", "")`` of ``training_set``, ``("test", "seg")`` of
    ``seg_test``. None where it says no split, or two."""
    tokens = [_unglued(token.lower()) for token in _TOKEN.findall(name)]
    splits = {SPLIT_WORDS[token] for token in tokens if token in SPLIT_WORDS}
    if len(splits) != 1:
        return None
    return splits.pop(), " ".join(token for token in tokens if token not in SPLIT_WORDS and token not in CONTAINERS)


def preferred(names: Sequence[str]) -> list[str]:
    """Of names for the same split those that are its own, where there are such: ``train`` and not ``trainval``."""
    return [name for name in names if not any(word in name.lower() for word in _SECOND)] or list(names)


def plain_split(name: str) -> str | None:
    """The split that a name says and nothing else; None where it says anything else."""
    found = split_of(name)
    return found[0] if found is not None and not found[1] else None


def _unglued(token: str) -> str:
    """``trainset`` as ``train``."""
    for container in CONTAINERS:
        if token.removesuffix(container) in SPLIT_WORDS:
            return token.removesuffix(container)
    return token


def is_container(name: str) -> bool:
    """Whether a folder's name says nothing but that images are in it."""
    return folded(name) in CONTAINERS


def says_nothing(name: str) -> bool:
    """Whether a folder's name tells no class: it is a container's or a split's."""
    return is_container(name) or plain_split(name) is not None
