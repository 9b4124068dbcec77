"""Images in Parquet files, as the Hugging Face hub serves them: any set of the hub, or a folder of one's own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data.columns import SAMPLE, USUAL, column_of, no_group, unused
from mlx_peft.data.dataset import EncodedImages, Split
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.leftout import told, unlabelled
from mlx_peft.data.lists import left_out, printed
from mlx_peft.data.litter import files_below
from mlx_peft.data.names import plain_split, preferred, spelled
from mlx_peft.data.sets.folder import existing
from mlx_peft.data.sets.table import classes_of, parts_of, split_words

HUB = "hf:"
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
        raise UserError(f"{name!r} is no set of the hub; write hf:OWNER/NAME, hf:OWNER/NAME:SUBSET or ...@REVISION")
    repository = Repository(match["repo"], match["subset"], match["revision"])

    def read(config: schema.Data, variant: Variant) -> Found:
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
    try:
        path = snapshot_download(
            repository.repo,
            repo_type="dataset",
            revision=repository.revision,
            allow_patterns=patterns,
            local_files_only=not config.download,
        )
    except Exception as error:  # of the hub's client, of the network, of the disk
        advice = "try again" if config.download else "set data.download: true to fetch it"
        raise UserError(f"{config.name}: not to be had ({str(error).partition(chr(10))[0]}); {advice}") from error
    return _read(Path(path), config, repository.subset)


def read_local(config: schema.Data, variant: Variant) -> Found:
    """The Parquet files below the root: ``train-00000-of-00002.parquet``, ``data/test.parquet``, ``val/0000.parquet``.

    Raises UserError where there are none, or where they do not hold images and labels.
    """
    return _read(existing(config.root), config, None)


def _read(root: Path, config: schema.Data, subset: str | None) -> Found:
    found, others = _files(root, config, subset)
    notes = [left_out("of no split", others)] if others else []
    with told(lambda: notes):
        tables = {split: _Table(files, root, config) for split, files in found.items()}
        classes, labels = _labels(tables)
        splits: dict[str, Split] = {}
        for name, table in tables.items():
            images = EncodedImages(table.cell, name, np.arange(table.size))
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
                missing = f"{blank.size} of the {part.size} {part.name} images"
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
            f"{config.name}: several subsets, {', '.join(printed(sorted(subsets)[:5]))}: name one, "
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
    """The files of a split, mapped from ``datasets``' cache: a column of images, and one of labels."""

    def __init__(self, files: list[Path], root: Path, config: schema.Data) -> None:
        datasets = _datasets()
        where = f"{root}: {files[0].relative_to(root).as_posix()}"
        try:
            _check_files(files)
            table = datasets.load_dataset("parquet", data_files=list(map(str, files)), split="train")
            columns = list(table.column_names)
            used = {what: column_of(columns, what, getattr(config.columns, what), where) for what in USUAL}
            image, label, group = used["image"], used["label"], used["group"]
            self.feature = table.features[label]
            self.labels: list[Any] = table.data.table.column(label).to_pylist()
            self.splits = used["split"]
            self.notes = unused(columns, used, config.columns, _sample(table, columns))
            self.groups = _groups(table.data.table.column(group).to_pylist(), group, where) if group else None
            self._splits = table.data.table.column(self.splits) if self.splits else None
            self._split_names = getattr(table.features.get(self.splits), "names", None)
            self._images = table.data.table.column(image)
            self.size = len(self.labels)
        except UserError:
            raise
        except Exception as error:  # Arrow's and datasets' readers raise almost anything on damaged bytes
            text = str(error.__cause__ or error).partition("\n")[0]
            raise UserError(f"{where}: not a readable Parquet file ({text or type(error).__name__})") from error
        self._where = f"{where}: {image}"

    def words(self) -> list[str]:
        """What the column of splits says of each row."""
        cells = [] if self._splits is None else self._splits.to_pylist()
        names = self._split_names
        return [names[cell] if names and isinstance(cell, int) and cell >= 0 else str(cell) for cell in cells]

    def cell(self, row: int) -> bytes:
        """The bytes of an image; a path in their place is not followed. Raises UserError where there are none."""
        value = self._images[row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise UserError(f"{self._where}, row {row}: no image in it, but {type(data).__name__}")
        return data


def _sample(table: Any, columns: Iterable[str]) -> dict[str, list[Any]]:
    """The first cells of the columns that hold texts or whole numbers."""
    kinds = {name: getattr(table.features[name], "dtype", "") for name in columns}
    named = [name for name, kind in kinds.items() if kind in ("string", "large_string", "int32", "int64")]
    return {name: table.data.table.column(name).slice(0, SAMPLE).to_pylist() for name in named}


def _groups(cells: list[Any], column: str, where: str) -> np.ndarray:
    """As text. Raises UserError at a row that has none."""
    for row, cell in enumerate(cells):
        if cell is None or cell != cell or not str(cell).strip():
            raise no_group(f"{where}, row {row}", column)
    return np.array([spelled(str(cell)) for cell in cells])


MAX_GROUP = 2**32
"""Bytes of a row group, unpacked; the hub's have some hundred megabytes."""


def _check_files(files: list[Path]) -> None:
    """Raises UserError where a file says that it needs more memory than any real one."""
    from pyarrow import parquet

    for path in files:
        with parquet.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(number).total_byte_size for number in range(file.metadata.num_row_groups)]
        if max(sizes, default=0) > MAX_GROUP:
            raise UserError(f"{path}: a row group of {max(sizes):,} bytes; at most {MAX_GROUP:,} are read")


def _labels(tables: dict[str, _Table]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Class names, the column's own if it has them, and the labels of each split, int64, -1 where there is none."""
    feature = tables["train"].feature
    names = getattr(feature, "names", None)
    everything = {split: table.labels for split, table in tables.items()}
    if names:
        return tuple(map(spelled, names)), {split: _numbers(values, split) for split, values in everything.items()}
    texts = {split: [_text(value) for value in values] for split, values in everything.items()}
    classes, _ = classes_of([text for text in texts["train"] if text])
    place: Callable[[str], int] = {name: number for number, name in enumerate(classes)}.get  # type: ignore[assignment]
    labels = {}
    for split, values in texts.items():
        known = [place(text) if text else -1 for text in values]
        if None in known:
            raise UserError(f"{split}: the label {values[known.index(None)]!r} is not in train")  # type: ignore[arg-type]
        labels[split] = np.array(known, np.int64)
    return classes, labels


def _numbers(values: list[Any], split: str) -> np.ndarray:
    numbers = [-1 if value is None else value for value in values]
    if not all(isinstance(number, int) for number in numbers):
        raise UserError(f"{split}: the labels are not whole numbers")
    return np.array(numbers, np.int64)


def _text(value: Any) -> str:
    if value is None or value == -1:
        return ""
    if not isinstance(value, int | str):
        raise UserError(
            f"labels of type {type(value).__name__} are no classes; name another column in data.columns.label"
        )
    return spelled(str(value))


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("sets in Parquet need the package datasets: pip install 'mlx-peft[datasets]'") from None
    datasets.disable_progress_bars()
    return datasets


ENTRIES = {
    "parquet": Entry(
        read=read_local,
        description="Parquet files with images and labels; hf:OWNER/NAME is any such set of the hub (extra: datasets)",
        source="yours",
        licence="yours",
        columns=True,
    )
}
