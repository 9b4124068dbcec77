"""Images in Parquet files, as the Hugging Face hub serves them: any set of the hub, or a folder of one's own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core import reach
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted
from mlx_peft.data.arrow import Table, check_installed, reason
from mlx_peft.data.checked import mark
from mlx_peft.data.columns import USUAL, column_of, no_group, unused
from mlx_peft.data.dataset import EncodedImages, Split
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.leftout import unlabelled, with_notes
from mlx_peft.data.lists import left_out, printed
from mlx_peft.data.litter import files_below
from mlx_peft.data.looking import Watch
from mlx_peft.data.names import plain_split, preferred, spelled
from mlx_peft.data.sets.folder import existing
from mlx_peft.data.sets.table import MAX_GROUPS, classes_of, parts_of, split_words

HUB = "hf:"
Cells = tuple[list[Any], np.ndarray]
"""A column's different values, and which each row has: see ``data.arrow.Table.cells``."""
NAME = re.compile(r"hf:(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(:(?P<subset>[\w-][\w.-]*))?(@(?P<revision>[\w-][\w./-]*))?")


@dataclass(frozen=True)
class Repository:
    """A set of the hub, ``hf:OWNER/NAME[:SUBSET][@REVISION]``."""

    repo: str
    subset: str | None
    revision: str | None


def hub_entry(name: str) -> Entry:
    """The set of the hub that a name means. Raises UserError where it is no such name."""
    match = NAME.fullmatch(name)
    if match is None or ".." in name:
        raise UserError(
            f"{name!r} is not a data set of the hub: write hf:OWNER/NAME, hf:OWNER/NAME:SUBSET or ...@REVISION"
        )
    repository = Repository(match["repo"], match["subset"], match["revision"])

    def read(config: schema.Data, variant: Variant, watch: Watch) -> Found:
        return read_hub(repository, config)

    page = f"https://huggingface.co/datasets/{repository.repo}"
    return Entry(read, "a set of the Hugging Face hub, in Parquet", page, f"see {page}", columns=True)


def read_hub(repository: Repository, config: schema.Data) -> Found:
    """The Parquet files of a repository, from the hub's cache on this machine or, with `data.download`, from the hub.

    Nothing but Parquet files is fetched or read: a repository's scripts are never run. Raises UserError where the hub
    does not answer, the set is not in the cache and may not be fetched, or it has no Parquet files.
    """
    from huggingface_hub import snapshot_download

    folder = f"{repository.subset}/" if repository.subset else ""
    patterns = [f"{folder}*.parquet"] + ([f"*/{folder}*.parquet"] if folder else [])
    if config.download:
        print(f"fetching {repository.repo} from the hub into its cache, if it is not there", file=sys.stderr)
    silent = reach.silence() if config.download else None
    try:
        path = snapshot_download(
            repository.repo,
            repo_type="dataset",
            revision=repository.revision,
            allow_patterns=patterns,
            local_files_only=not config.download or silent is not None,
        )
    except Exception as error:  # of the hub's client, of the network, of the disk
        advice = "try again" if config.download else "set data.download: true to fetch it"
        reason = silent or str(error).partition("\n")[0]
        raise UserError(f"{config.name} could not be fetched ({reason}); {advice}") from error
    return _read(Path(path), config, repository.subset)


def read_local(config: schema.Data, variant: Variant, watch: Watch) -> Found:
    """The Parquet files below the root: ``train-00000-of-00002.parquet``, ``data/test.parquet``, ``val/0000.parquet``.

    Raises UserError where there are none, or where they do not hold images and labels.
    """
    return _read(existing(config.root), config, None)


def _read(root: Path, config: schema.Data, subset: str | None) -> Found:
    found, others = _files(root, config, subset)
    notes = [left_out("of no split", others)] if others else []
    with with_notes(lambda: notes):
        tables = {split: _Table(files, root, config) for split, files in found.items()}
        classes, labels = _labels(tables)
        splits: dict[str, Split] = {}
        for name, table in tables.items():
            images = EncodedImages(table.cell, name, np.arange(table.size), mark(table.stamp, name))
            splits[name] = Split(name, images, labels[name], table.groups)
            notes += table.notes
        if len(tables) == 1 and tables["train"].splits:
            splits = parts_of(splits["train"], split_words(tables["train"].words(), tables["train"].splits, root))
        elif unread := [f"column {table.splits!r} of {name}" for name, table in tables.items() if table.splits]:
            if config.columns.split:
                raise UserError(
                    f"data.columns.split: the files below {root} are of {', '.join(tables)} already; leave it out, or "
                    "keep those of train alone"
                )
            notes.append(f"not used: {', '.join(unread)}; the files' names say the split")
        for part in [part for part in splits.values() if (part.labels < 0).all()]:
            notes.append(unlabelled(part.name, part.size))
            del splits[part.name]
        if "train" not in splits:
            raise UserError(f"{config.name}: no training image below {root} has a label")
        for part in splits.values():
            if (blank := np.flatnonzero(part.labels < 0)).size:
                missing = f"{blank.size} of the {counted(part.size, f'{part.name} image')}"
                raise UserError(f"{root}: {missing} have no label (the first: row {blank[0]})")
        return Found(classes, splits, tuple(notes))


def _files(root: Path, config: schema.Data, subset: str | None) -> tuple[dict[str, list[Path]], list[str]]:
    """The files of each split, and the names of those of none. Raises UserError where none is of train, or where they
    are of several subsets, or under two words for a split."""
    words: dict[str, dict[str, list[Path]]] = {}
    others: list[str] = []
    for inside in sorted(map(Path, files_below(root, (".parquet",)))):
        if subset is not None and subset not in inside.parts[:-1]:
            continue
        split = _split_of(inside)
        if split is None:
            others.append(inside.as_posix())
        else:
            words.setdefault(split, {}).setdefault(_word(inside).lower(), []).append(inside)
    if "train" not in words:
        named = ", ".join(printed(others[:3])) or "no Parquet file"
        raise UserError(f"{config.name}: no train-*.parquet below {root}; there is {named}")
    found: dict[str, list[Path]] = {}
    for split, files in words.items():
        first, *more = preferred(list(files))
        if more:
            raise UserError(f"{config.name}: files of both {first} and {more[0]} below {root}; keep those of one")
        found[split] = files.pop(first)
        others += [inside.as_posix() for left in files.values() for inside in left]
    if len(subsets := {_subset_of(inside) for files in found.values() for inside in files}) > 1:
        raise UserError(
            f"{config.name} has several subsets, {', '.join(printed(sorted(subsets)[:5]))}: name one, "
            "hf:OWNER/NAME:SUBSET, or set data.root to its folder"
        )
    return {split: [root / inside for inside in files] for split, files in found.items()}, others


def _split_of(path: Path) -> str | None:
    """The split that a file's name begins with (``train-00000``), or that its folder has."""
    return plain_split(_word(path))


def _word(path: Path) -> str:
    """What a file's name begins with, or its folder's name, where that says no split."""
    word = re.split(r"[-_.\d]", path.name.lower(), maxsplit=1)[0]
    return word if plain_split(word) else path.parent.name


def _subset_of(path: Path) -> str:
    """The folders of a file but for one that is called like a split: those of a subset's files are the same."""
    return "/".join(part for part in path.parts[:-1] if plain_split(part) is None) or "."


class _Table:
    """The files of a split: a column of images, and one of labels."""

    def __init__(self, files: list[Path], root: Path, config: schema.Data) -> None:
        check_installed("sets")
        where = f"{root}: {files[0].relative_to(root).as_posix()}"
        try:
            table = Table(files)
            used = {what: column_of(table.columns, what, getattr(config.columns, what), where) for what in USUAL}
            self.notes = unused(table.columns, used, config.columns, table.sample())
            self.names = table.names(used["label"])
            self.labels: Cells = table.cells(used["label"])
            self.groups = _groups(table.cells(used["group"]), used["group"], where) if used["group"] else None
            self.splits = used["split"]
            self._splits: Cells = table.cells(self.splits) if self.splits else ([], np.empty(0, np.int64))
            self._split_names = table.names(self.splits)
            self._images = table.images(used["image"], config.cache.folder)
            self.size, self.stamp = table.size, table.stamp
            for _, rows in (self.labels, *([self._splits] if self.splits else [])):
                if len(rows) != self.size or len(self._images) != self.size:
                    raise UserError(f"{where}: {counted(self.size, 'row')}, and columns of {len(rows):,}: damaged")
        except UserError:
            raise
        except Exception as error:  # Arrow's readers raise almost anything on damaged bytes
            raise UserError(f"{where} is not a readable Parquet file ({reason(error)})") from error
        self._where = f"{where}: {used['image']}"

    def words(self) -> list[str]:
        """What the column of splits says of each row."""
        cells, rows = self._splits
        names = self._split_names
        words = [names[cell] if names and isinstance(cell, int) and cell >= 0 else str(cell) for cell in cells]
        return [words[row] if row >= 0 else str(None) for row in rows.tolist()]

    def cell(self, row: int) -> bytes:
        """The bytes of an image; a path in their place is not followed. Raises UserError where there are none."""
        data = self._images.read(row)
        if data is None:
            raise UserError(f"{self._where}, row {row}: its image is missing")
        return data


def _groups(column: Cells, name: str, where: str) -> np.ndarray:
    """As text. Raises UserError at a row that has none, or where they take too much memory."""
    cells, rows = column
    texts = [spelled(str(cell)) if cell == cell and str(cell).strip() else "" for cell in cells] + [""]
    blank = np.array([not text for text in texts])
    if (missing := np.flatnonzero(blank[rows])).size:
        raise no_group(f"{where}, row {missing[0]}", name)
    longest = max(map(len, texts))
    if longest * len(rows) > MAX_GROUPS:
        raise UserError(f"{where}: a group's name of {longest:,} characters is too long for {len(rows):,} rows")
    named: np.ndarray = np.array(texts)[rows]
    return named


def _labels(tables: dict[str, _Table]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Class names, the column's own if it has them, and the labels of each split, int64, -1 where there is none."""
    names = tables["train"].names
    if names:
        return tuple(map(spelled, names)), {split: _numbers(*table.labels, split) for split, table in tables.items()}
    texts = {split: [_text(value) for value in table.labels[0]] for split, table in tables.items()}
    used = np.unique(rows := tables["train"].labels[1])[0 if (rows >= 0).all() else 1 :]
    classes, _ = classes_of([text for row in used.tolist() if (text := texts["train"][row])])
    place: Callable[[str], int] = {name: number for number, name in enumerate(classes)}.get  # type: ignore[assignment]
    labels = {}
    for split, table in tables.items():
        known = [place(text) if text else -1 for text in texts[split]]
        if None in known:
            raise UserError(f"{split}: the label {texts[split][known.index(None)]!r} is not in train")  # type: ignore[arg-type]
        labels[split] = np.array([*known, -1], np.int64)[table.labels[1]]
    return classes, labels


def _numbers(values: list[Any], rows: np.ndarray, split: str) -> np.ndarray:
    if not all(isinstance(number, int) for number in values):
        raise UserError(f"{split}: the labels should be whole numbers, since the file names its classes")
    numbers: np.ndarray = np.array([*values, -1], np.int64)[rows]
    return numbers


def _text(value: Any) -> str:
    if value == -1:
        return ""
    if value is None:
        raise UserError("no row has a label; name another column in data.columns.label")
    if not isinstance(value, int | str):
        raise UserError(
            f"labels of type {type(value).__name__} are no classes; name another column in data.columns.label"
        )
    return spelled(str(value))


ENTRIES = {
    "parquet": Entry(
        read=read_local,
        description="Parquet files with images and labels; hf:OWNER/NAME is any such set of the hub (extra: datasets)",
        source="yours",
        licence="yours",
        columns=True,
    )
}
