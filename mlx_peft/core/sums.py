"""``SHA256SUMS.txt``: the digests of the text files in a folder, as ``sha256sum -c`` reads them.

A digest beside the files, since what other libraries open (``adapter_config.json``, ``config.json``) has no place for
one. Who changes such a file on purpose takes its line out, or the whole of ``SHA256SUMS.txt``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from mlx_peft.core.errors import UserError
from mlx_peft.core.standing import passage
from mlx_peft.core.writing import write_together

SUMS = "SHA256SUMS.txt"
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
"""A line as ``sha256sum`` writes it, or ``sha256sum --binary``."""
LARGEST = 2**24
"""A list has at most so many bytes: that of a run has five lines."""
BLOCK = 2**20
"""Bytes of a file that are in memory at once, to digest it."""


def write_with_sums(folder: Path, files: Mapping[str, bytes], there: Collection[str] = ()) -> None:
    """Writes files of a folder, and first their digests and those of files that are ``there``; others stay.

    A process that is killed in between leaves digests of what is yet to come; where files are replaced that have a
    digest, it leaves them, old or new, without one. Raises UserError where the disk refuses, and where the digests that
    are there cannot be read.
    """
    contents = {name: (folder / name).read_bytes() for name in there} | {**files}
    before = read_sums(folder)
    digests = before | {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    written = {folder / name: content for name, content in files.items()}
    if any(before.get(name, digests[name]) != digests[name] and (folder / name).exists() for name in files):
        write_together({folder / SUMS: _listed({name: before[name] for name in before if name not in files})})
        write_together(written)
        written = {}
    write_together({folder / SUMS: _listed(digests), **written})


def _listed(digests: Mapping[str, str]) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode()


def read_sums(folder: Path) -> dict[str, str]:
    """The digests by file; none where there is no such list. Raises UserError where it is damaged."""
    path = folder / SUMS
    if not path.exists():
        return {}
    must_be_plain(path)
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise UserError(
                f"{path} is damaged: it has {size:,} bytes, and no list of digests has more than {LARGEST:,}"
            )
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    *lines, last = text.split("\n")
    found = [LINE.fullmatch(line) for line in lines]
    names = [match[2] for match in found if match]
    if last or len(set(names)) < len(lines):
        raise UserError(f"{path} is damaged: each line should be a digest, two spaces and the name of a file")
    return {match[2]: match[1] for match in found if match}


def check_sum(path: Path, yet_to_come: Collection[str] = ()) -> bool:
    """Whether there is a digest of a file, which then is the right one.

    Args:
        yet_to_come: names of files that may be listed and not there.

    Raises:
        UserError: where the file is no longer what was written, or no file, and where one that is listed is missing.
    """
    must_be_plain(path)
    listed = read_sums(path.parent)
    for name in listed:
        if name not in yet_to_come and not (path.parent / name).exists():
            raise UserError(
                f"{path.parent / SUMS} lists {name!r}, which is not there: put the file back, or take its line out"
            )
    if path.name not in listed:
        return False
    try:
        digest = _digest(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if digest != listed[path.name]:
        raise UserError(
            f"{path} was damaged or changed after it was written: {path.parent / SUMS} has another digest of it. Where "
            f"the change is meant, take the line of {path.name} out of {SUMS}; otherwise take another copy of the file"
        )
    return True


def must_be_plain(path: Path) -> None:
    """Raises UserError where a pipe, a socket or a device has the name: whoever reads it would wait for ever."""
    if (kind := passage(path)) is not None:
        raise UserError(f"{path} is {kind}, and no file: put the file back")


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()
