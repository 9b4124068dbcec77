"""Text files that list images: read whole, bounded, and never believed about where an image lies."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted, printable
from mlx_peft.data.dataset import FileImages, Split
from mlx_peft.data.looking import CHUNK, Watch, unwatched
from mlx_peft.data.names import EXAMPLES, spelled
from mlx_peft.data.strangers import HEAD, stranger

MAX_TEXT = 2**28
"""The largest list that is read has so many bytes: ImageNet's would have 60 million."""

WHOLE = re.compile(r"-?[0-9]{1,18}")
"""A label that is a number."""

ADVISED = 200
"""So many listed images that are not there are looked for elsewhere."""


def left_out(kind: str, names: Sequence[str]) -> str:
    """A note about images that were not taken: how many, and the first of them."""
    more = ", ..." if len(names) > EXAMPLES else ""
    return f"left out, {kind}: {len(names)} ({', '.join(printed(names[:EXAMPLES]))}{more})"


def printed(names: Iterable[str]) -> list[str]:
    """Names as a person may read them, whatever a terminal would obey in them."""
    return list(map(printable, names))


def read_list(path: Path) -> bytes:
    """The bytes of a text. Raises UserError, naming it, where it cannot be read, is no text or larger than MAX_TEXT."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(data) > MAX_TEXT:
        raise UserError(f"{path} is larger than {MAX_TEXT // 2**20} MiB, the most that is read as a list")
    if data and (kind := stranger(data[:HEAD])):
        raise UserError(f"{path}: it is {kind}")
    return data


def read_text(path: Path) -> str:
    """A text in UTF-8, or in UTF-16 as spreadsheets write it. Raises UserError, naming it, where it cannot be read, is
    no text or is larger than MAX_TEXT."""
    data = read_list(path)
    encoding = encoding_of(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.upper().removesuffix("-SIG")
        raise UserError(
            f"{path}: not a text in {name} ({error.reason} at byte {error.start}); save it as UTF-8 (in a spreadsheet: "
            '"CSV UTF-8")'
        ) from error


def encoding_of(data: bytes) -> str:
    """UTF-8, unless the marks at its beginning, or every other byte of it, say otherwise."""
    for mark, name in ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")):
        if data.startswith(mark):
            return name
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for name, odd in (("utf-16-le", 1), ("utf-16-be", 0)):
        if len(data) >= 8 and not any(data[odd:8:2]) and all(data[1 - odd : 8 : 2]):
            return name
    return "utf-8-sig"


def read_rows(path: Path, columns: int, sep: str | None = None) -> list[list[str]]:
    """The lines of a file, cut into so many columns or more; blank lines and ``#`` comments are left out.

    Raises UserError, naming file and line, at a line that has fewer.
    """
    rows = []
    for number, line in _lines(path):
        cells = line.strip().split(sep)
        if len(cells) < columns:
            raise UserError(f"{path}: line {number} has {counted(len(cells), 'column')}, not {columns}: {line[:80]!r}")
        rows.append(cells)
    if not rows:
        raise UserError(f"{path} lists nothing")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are rows, each with its number in the file."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            yield number, line


def integer(text: str, path: Path, row: int) -> int:
    """A label as it stands in a row of a list. Raises UserError, naming list and line, where it is no whole number of
    at most 18 digits, which every integer of 64 bits holds."""
    if WHOLE.fullmatch(text):
        return int(text)
    number, _ = next(islice(_lines(path), row, None))
    raise UserError(
        f"{path}: line {number}: the label should be a whole number of at most 18 digits, not {text[:80]!r}"
    )


def images_in(
    root: Path,
    paths: Iterable[str],
    source: Path,
    advice: Callable[[Sequence[str]], str] | None = None,
    watch: Watch = unwatched,
) -> tuple[str, ...]:
    """The paths of images below a root, as a list names them, normalised; the same image once only.

    A name with accents is found in both of Unicode's spellings, and is the one that the disk has. Raises UserError,
    naming the list, where a path is absolute, leads out of the root (by ``..`` or a link), is listed twice, or is no
    file: with what `advice` says of those that are none.
    """
    inside, there = _inside(root), _respelled(root)
    found: dict[str, None] = {}
    missing: list[str] = []
    what = "looking for the listed images"
    watch(what, 0, None)
    for number, text in enumerate(paths, 1):
        if number % CHUNK == 0:
            watch(what, number, None)
        path = PurePosixPath(text.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or "\0" in text or not path.parts or PureWindowsPath(text).drive:
            raise UserError(f"{source}: {text[:200]!r} is not a path inside {root}; paths are relative to it")
        name = path.as_posix()
        if not os.path.isfile(root / name):
            name = there(name) or ""
        if not name:
            missing.append(path.as_posix())
            if advice is None or len(missing) >= ADVISED:
                break
            continue
        if name in found:
            raise UserError(f"{source}: {name!r} is listed twice")
        if not inside(root / name):
            raise UserError(f"{source}: {name!r} is a link that leads out of {root}")
        found[name] = None
    if missing:
        more = advice(missing) if advice is not None else ""
        raise UserError(f"{source}: {missing[0]!r} is listed, and there is no {root / missing[0]}{more}")
    return tuple(found)


def _respelled(root: Path) -> Callable[[str], str | None]:
    """The path of a file as the disk spells it, by one with accents in another spelling; None where there is none."""

    @cache
    def listed(folder: str) -> dict[str, str]:
        try:
            return {spelled(name): name for name in os.listdir(root / folder)}
        except OSError:
            return {}

    def there(name: str) -> str | None:
        if name.isascii():
            return None
        path = ""
        for part in PurePosixPath(name).parts:
            own = listed(path).get(spelled(part))
            if own is None:
                return None
            path = f"{path}/{own}" if path else own
        return path if os.path.isfile(root / path) else None

    return there


def labels_of(names: Sequence[str], classes: Sequence[str], source: Path) -> np.ndarray:
    """The places of class names among the classes, int64. Raises UserError, naming the list, at another name."""
    place = {spelled(name): number for number, name in enumerate(classes)}
    names = [spelled(name) for name in names]
    if unknown := sorted(set(names) - set(place)):
        raise UserError(f"{source}: {unknown[0]!r} is none of the {len(classes)} classes")
    return np.array([place[name] for name in names], np.int64)


def listed_split(name: str, root: Path, paths: Iterable[str], labels: np.ndarray, source: Path, watch: Watch) -> Split:
    """A split of the images that a list names. Raises UserError as ``images_in``."""
    return Split(name, FileImages(root, images_in(root, paths, source, watch=watch)), labels)


def _inside(root: Path) -> Callable[[Path], bool]:
    """Whether a path's file lies below the root, links followed. Each folder is resolved once."""
    real = root.resolve()

    @cache
    def folder_inside(folder: Path) -> bool:
        return folder.resolve().is_relative_to(real)

    def inside(path: Path) -> bool:
        return folder_inside(path.parent) and (not path.is_symlink() or path.resolve().is_relative_to(real))

    return inside


def locate(root: Path, places: Sequence[str], marker: str, name: str, source: str) -> Path:
    """The folder below the root, among the usual places, that holds the marker. Raises UserError where none does."""
    for place in places:
        if os.path.exists(root / place / marker):
            return root / place
    beside = ", ".join(f"{place}/" for place in places if place != ".")
    raise UserError(
        f"{name}: no {marker} in {root}" + (f" (nor in {beside} there)" if beside else "") + "; set data.root to where "
        f"the unpacked set is, or get it from {source}"
    )
