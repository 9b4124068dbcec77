"""What a long run or a large set needs, each case at so many times its size: see ``scale.py``, which measures them."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Steps = Iterator[tuple[str, Callable[[], object]]]
"""Parts of a case, each with its name; what one returns as a text is told below the table."""

TIMES = (1, 10, 100)
JPEGS = 2_000
"""Different files that a tree of links is made of."""
MINUTE = 60
"""So many seconds of the largest set's check are watched."""


def smooth(seed: int, height: int, width: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def tree(folder: Path, times: int) -> Path:
    """A hundredth of ImageNet's layout, so many times: train/CLASS/*.JPEG and val/CLASS/*.JPEG, hard links to JPEGS."""
    classes, source = 10 * times, folder / "source"
    source.mkdir()
    for number in range(JPEGS):
        smooth(number, 80, 96).save(source / f"{number}.jpg", quality=90)
    count = 0
    for split, images in (("train", 1281), ("val", 50)):
        for label in range(classes):
            place = folder / "images" / split / f"n{label:08}"
            place.mkdir(parents=True)
            more = 1 if split == "train" and label * 1000 < 167 * classes else 0
            for number in range(images + more):
                os.link(source / f"{count % JPEGS}.jpg", place / f"n{label:08}_{number}.JPEG")
                count += 1
    return folder / "images"


def imagenet(folder: Path, times: int) -> Steps:
    """ImageNet's layout of class folders: opened, hashed, a batch, one in the middle of an epoch, all of it read."""
    from mlx_peft.config import schema
    from mlx_peft.data import find, open_dataset, train_batches
    from mlx_peft.data.check import survey
    from mlx_peft.data.opening import open_entry
    from mlx_peft.vit.architecture import Preprocessing

    root = tree(folder, times)
    split = {"val": 0.1, "test": 0.05}
    values = {"name": "folder", "root": str(root), "batch_size": 256, "split": split, "cache": {"folder": str(folder)}}
    config = schema.Data.model_validate(values)
    recipe = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    found: list[Any] = []
    name = f"ImageNet's layout, {13_312 * times:,} files"
    yield f"{name}: opened first (up to 50,000 files are decoded)", lambda: found.append(open_dataset(config)) or None
    yield f"{name}: opened again, the first still there", lambda: open_dataset(config) and None
    (dataset,) = found
    yield f"{name}: splits hashed", lambda: [part.sha256 for part in dataset.splits.values()]
    steps = -(-dataset.train.size // 256)
    for what, start in (("first batch of an epoch", 0), ("first batch of a resume in its middle", steps // 2)):
        yield (
            f"{name}: {what}, 256 images to 224 px",
            lambda start=start: next(train_batches(dataset.train, config, recipe, 224, seed=0, epoch=3, start=start)),
        )
    whole = open_entry(find("folder"), config, decode=False)
    if times < TIMES[-1]:
        yield f"{name}: data check", lambda: survey(whole, 2, config)
        return
    for what in (f"data check, broken off after {MINUTE} seconds", "data check, started again and broken off"):
        yield f"{name}: {what}", lambda: broken_off(lambda watch: survey(whole, 2, config, watch))


def files(folder: Path, times: int) -> Steps:
    """Many small files in ten class folders: opened, opened again, and with one file more."""
    from mlx_peft.config import schema
    from mlx_peft.data import open_dataset

    root, count = folder / "files", 10_000 * times
    sources = [folder / f"{number}.jpg" for number in range(100)]
    for number, source in enumerate(sources):
        smooth(number, 24, 32).save(source)
    for label in range(10):
        (root / f"class-{label}").mkdir(parents=True)
    for number in range(count):
        os.link(sources[number % 100], root / f"class-{number % 10}" / f"{number:07d}.jpg")
    config = schema.Data.model_validate({"name": "folder", "root": str(root), "cache": {"folder": str(folder)}})
    for what in ("opened first (up to 50,000 are decoded)", "opened again"):
        yield f"{count:,} files in ten folders: {what}", lambda: open_dataset(config) and None
    smooth(0, 30, 40).save(root / "class-0" / "new.jpg")
    yield f"{count:,} files in ten folders: opened again, one file more", lambda: open_dataset(config) and None


def broken_off(work: Callable[[Callable[[str, int, int | None], None]], object]) -> str:
    """The last that a person reads of a work that Ctrl-C ends after a minute."""
    from mlx_peft.cli import progress

    told = [""]

    class Told(progress.Lines):
        def note(self, text: str) -> None:
            told.append(text)

    progress.EVERY = 5.0
    lines = Told()
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(MINUTE)
    try:
        work(lines.opening)
    except KeyboardInterrupt:
        pass
    finally:
        signal.alarm(0)
    return told[-1]


def duplicates(folder: Path, times: int) -> Steps:
    """Glances that resemble each other by chance alone, and one in ten that is another's near-duplicate."""
    from mlx_peft.data.duplicates import clusters
    from mlx_peft.data.seen import RECORD

    count, rng = 10_000 * times, np.random.default_rng(0)
    records = np.zeros(count, RECORD)
    records["hash"] = rng.integers(0, 2**64, count, np.uint64)
    records["levels"] = rng.integers(0, 256, (count, 256), np.uint8)
    records["glanced"] = True
    copies = np.arange(0, count, 10)
    records[copies] = records[copies - 1]
    records["hash"][copies] ^= np.uint64(1)
    records.view(np.uint8).reshape(count, RECORD.itemsize)[:, :16] = rng.integers(0, 256, (count, 16), np.uint8)
    yield f"near-duplicates, {count:,} images", lambda: clusters(records)


def splits(folder: Path, times: int) -> Steps:
    """1,000 classes; patients of some five images each."""
    from mlx_peft.config import schema
    from mlx_peft.data import FileImages, Split
    from mlx_peft.data.splits import hold_out

    count, rng = 12_800 * times, np.random.default_rng(0)
    labels = np.sort(rng.integers(0, 1000, count))
    images = FileImages(folder, tuple(f"{label:04}/{number}.jpg" for number, label in enumerate(labels.tolist())))
    names = tuple(f"{label:04}" for label in range(1000))
    shares = schema.Split(val=0.1, test=0.1)
    for what, groups in (("", None), (", patients kept together", rng.integers(0, count // 5, count))):
        train = Split("train", images, labels, groups)
        yield f"split of {count:,} images in 1,000 classes{what}", lambda t=train: hold_out("set", names, t, shares)


def metrics(folder: Path, times: int) -> Steps:
    """1,000 classes: accuracy, calibration, confusion; and with the AUROC of each class against the rest."""
    import sklearn.metrics  # noqa: F401  whose memory is not counted

    from mlx_peft.tasks.single_label import SINGLE_LABEL
    from mlx_peft.training.evaluate import examined

    count, classes = 1_280 * times, 1_000

    def answers() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rng = np.random.default_rng(0)
        for _ in range(0, count, 64):
            yield rng.normal(0, 1, (64, classes)), rng.integers(0, classes, 64)

    for what, auroc in (("", False), (", with AUROC and confusion", True)):
        yield (
            f"metrics of {count:,} images in 1,000 classes{what}",
            lambda auroc=auroc: examined(answers(), SINGLE_LABEL, classes, auroc=auroc),
        )


def report(folder: Path, times: int) -> Steps:
    """Runs of twenty epochs."""
    import matplotlib.figure  # noqa: F401  whose memory is not counted

    from mlx_peft.report import files, gather

    count = 30 * times
    result = {"run_id": "0", "method": "lora", "model": "vit", "metrics": {"test": {"top1": 0.5}}}
    for number in range(count):
        run = folder / "runs" / f"{number:05}"
        run.mkdir(parents=True)
        (run / "result.json").write_text(json.dumps(result | {"seed": number}))
        epochs = [{"step": n, "epoch": n, "train_loss": 1.0, "val_top1": n / 30} for n in range(1, 21)]
        (run / "metrics.jsonl").write_text("".join(f"{json.dumps(epoch)}\n" for epoch in epochs))
    found: list[Any] = []
    yield f"report, {count:,} runs: gathered", lambda: found.append(gather.gathered(folder / "runs"))
    yield f"report, {count:,} runs: tables and curves", lambda: files.write(found[0].finished, folder / "out")


def parquet(folder: Path, times: int) -> Steps:
    """A dictionary of two images of 4 kB, of which each row has one."""
    import pyarrow as pa
    from pyarrow import parquet as file_format

    from mlx_peft.config import schema
    from mlx_peft.data import find
    from mlx_peft.data.opening import open_entry

    count, images = 10_000 * times, []
    for seed in range(2):
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (36, 36, 3), np.uint8)).save(file, "PNG")
        images.append(file.getvalue())
    numbers = pa.array(np.arange(count) % 2, pa.int32())
    columns = {"image": pa.DictionaryArray.from_arrays(numbers, pa.array(images, pa.binary())), "label": numbers}
    (folder / "set").mkdir()
    path = folder / "set" / "train.parquet"
    file_format.write_table(pa.table(columns), path, row_group_size=count, store_schema=False)
    config = schema.Data(name="parquet", root=folder / "set", cache={"folder": folder / "cache"})
    yield (
        f"Parquet of {path.stat().st_size / 1000:,.0f} kB, {count:,} rows of two images: opened first, not decoded",
        lambda: open_entry(find("parquet"), config, decode=False),
    )


CASES = {case.__name__: case for case in (duplicates, splits, parquet, report, metrics, imagenet, files)}
