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
from mlx_peft.core.writing import write_together

SUMS = "SHA256SUMS.txt"
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
"""A line as ``sha256sum`` writes it, or ``sha256sum --binary``."""


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
    try:
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
        UserError: where the file is no longer what was written, and where a file that is listed is missing.
    """
    listed = read_sums(path.parent)
    for name in listed:
        if name not in yet_to_come and not (path.parent / name).exists():
            raise UserError(
                f"{path.parent / SUMS} lists {name!r}, which is not there: put the file back, or take its line out"
            )
    if path.name not in listed:
        return False
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if digest != listed[path.name]:
        raise UserError(
            f"{path} was damaged or changed after it was written: {path.parent / SUMS} has another digest of it. Where "
            f"the change is meant, take the line of {path.name} out of {SUMS}; otherwise take another copy of the file"
        )
    return True
