"""How what a long run or a large set needs grows: each case at 1, 10 and 100 times, in time and memory.

    python tests/bench/scale.py > table.md          # all cases: half an hour
    python tests/bench/scale.py imagenet report     # some of them
    python tests/bench/scale.py soak                # 20,000 steps of each backend, for what a run must not gather

Every size of a case is a process of its own, which may have 3 GiB of address space. Memory is the peak beyond what the
process had before. What is made on the disk is removed.
"""

from __future__ import annotations

import io
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from soak import soak

Steps = Iterator[tuple[str, Callable[[], object]]]
TIMES = (1, 10, 100)
ADDRESS_SPACE = 3 * 2**30
JPEGS = 2_000
"""Different files that a tree of links is made of."""


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
    name = f"ImageNet's layout, {13_310 * times + 2 * times:,} files"
    yield f"{name}: opened first (files looked at beforehand: up to 50,000)", lambda: found.append(open_dataset(config))
    yield f"{name}: opened again", lambda: open_dataset(config)
    (dataset,) = found
    yield f"{name}: splits hashed", lambda: [part.sha256 for part in dataset.splits.values()]
    steps = -(-dataset.train.size // 256)
    for what, start in (("first batch of an epoch", 0), ("first batch of a resume in its middle", steps // 2)):
        yield (
            f"{name}: {what}, 256 images to 224 px",
            lambda start=start: next(train_batches(dataset.train, config, recipe, 224, seed=0, epoch=3, start=start)),
        )
    if times <= int(os.environ.get("SCALE_CHECKED", "10")):
        whole = open_entry(find("folder"), config, decode=False)
        yield f"{name}: data check", lambda: survey(whole, 2)


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


CASES = {case.__name__: case for case in (imagenet, duplicates, splits, metrics, report, parquet)}


def measured_here(case: str, times: int) -> None:
    """Prints a line for each part of a case, at a size."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    unit = 1 if sys.platform == "darwin" else 1024
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for what, work in CASES[case](Path(folder), times):
            before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            clock = time.perf_counter()
            work()
            seconds, wall = time.process_time() - began, time.perf_counter() - clock
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(json.dumps([what, seconds, wall, (peak - before) * unit, peak * unit]), flush=True)


def machine() -> str:
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    return (
        f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} processors, load {load} (other work ran beside)"
    )


def main(cases: list[str]) -> None:
    print(f"{machine()}\n")
    print("| what | CPU seconds | wall seconds | memory, more | peak |\n|---|---:|---:|---:|---:|", flush=True)
    for case in cases:
        for times in TIMES:
            done = subprocess.run([sys.executable, __file__, case, str(times)], stdout=subprocess.PIPE, text=True)
            for line in done.stdout.splitlines():
                what, seconds, wall, more, peak = json.loads(line)
                sizes = f"{more / 2**20:,.0f} MiB | {peak / 2**20:,.0f} MiB"
                print(f"| {what} | {seconds:.2f} | {wall:.2f} | {sizes} |", flush=True)
            if done.returncode:
                print(f"| {case}, {times} times | failed, status {done.returncode} | | | |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["soak"]:
        print(f"{machine()}\n")
        for line in soak(*map(int, sys.argv[2:3])):
            print(line, flush=True)
    elif len(sys.argv) == 3 and sys.argv[2].isdigit():
        measured_here(sys.argv[1], int(sys.argv[2]))
    else:
        main(sys.argv[1:] or list(CASES))
