"""What a file is that is called like an image, or a table, and is neither."""

from __future__ import annotations

import re
from pathlib import Path

from mlx_peft.data.litter import files_below

HEAD = 256
"""So many bytes of a file's beginning tell what it is."""

LOOKED_AT = 10_000
"""So many files of a folder are looked at for pointers, once it is refused."""

LFS = "a Git LFS pointer and not the file itself: run `git lfs pull`"

_KINDS = (
    (re.compile(rb"version https://git-lfs\.github\.com/spec/"), LFS),
    (re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL), "HEIC, which is not read: convert it to JPEG"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "AVIF, which is not read: convert it to JPEG"),
    (re.compile(rb"\xff\n|\0\0\0\x0cJXL ", re.DOTALL), "JPEG XL, which is not read: convert it to JPEG"),
    (re.compile(rb".{128}DICM", re.DOTALL), "DICOM, which is not read: convert it to PNG"),
    (re.compile(rb"\s*<(!doctype html|html|\?xml|svg)", re.IGNORECASE), "a web page, XML or SVG and no image"),
    (re.compile(rb"\Z"), "empty"),
)


def stranger(head: bytes) -> str | None:
    """What a file that begins so is, where that is known to be neither image nor table, and what to do about it."""
    return next((kind for pattern, kind in _KINDS if pattern.match(head[:HEAD])), None)


def kind_in(reason: str) -> str | None:
    """The kind that a refusal says."""
    return next((kind for _, kind in _KINDS if reason.endswith(f": it is {kind}")), None)


def head_of(path: Path) -> bytes:
    """The beginning of a file; what begins no file of a known kind where it cannot be read, or is none."""
    try:
        if path.is_file():  # a pipe would be waited for without end
            with path.open("rb") as file:
                return file.read(HEAD)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        pass
    return b"?"


def pointers(root: Path) -> tuple[str, ...]:
    """A note about the Git LFS pointers among a folder's files; none where there are none, or where it is no folder."""
    found = [name for name in files_below(root, ("",))[:LOOKED_AT] if stranger(head_of(root / name)) == LFS]
    if not found:
        return ()
    listed = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
    return (f"Git LFS pointers and not the files themselves: {len(found)} ({listed}); run `git lfs pull`",)
