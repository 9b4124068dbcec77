"""Adapters of four methods for four sets of real images on one DINOv2 ViT-S/14, then one mixed batch beside each alone.

    python tests/bench/four_adapters.py WORK --weights FILE --textile FOLDER --cifar10 FOLDER --fashion FOLDER \\
        > experiments/results/four-adapters.md

WORK holds what is made: images in class folders, a run for each set, the answers; what is there is not made again. The
weights are timm's vit_small_patch14_dinov2; the textile images lie in class folders, CIFAR-10's in class folders in
``train`` and ``test``, Fashion-MNIST's in its IDX files; the digits are scikit-learn's. Each run chooses its epoch on a
tenth of its training images; test images are only answered, by ``mlx-peft predict``: each set alone, then all of them
shuffled in one table.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from mlx_peft.config import schema
from mlx_peft.data import open_dataset

TEST_SHARE = 0.25
"""Of each class of a set without test images of its own."""


@dataclass(frozen=True)
class Adapter:
    """A set, the method that is trained on it, in words and as an experiment has it, and the learning rate."""

    name: str
    words: str
    method: str
    lr: float


ADAPTERS = (
    Adapter("textile", "LoRA, rank 8", "{name: lora, rank: 8, alpha: 16, targets: [qkv, proj]}", 1e-3),
    Adapter("cifar10", "DoRA, rank 4", "{name: lora, rank: 4, alpha: 8, targets: [qkv, proj], dora: true}", 1e-3),
    Adapter("digits", "VeRA, rank 256", "{name: vera, rank: 256, targets: [q, v]}", 1e-2),
    Adapter("fashion", "AdaptFormer, bottleneck 16", "{name: adaptformer, bottleneck: 16}", 1e-3),
)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def product(*words: object) -> None:
    """A command of the product's."""
    say("mlx-peft " + " ".join(map(str, words)))
    done = subprocess.run([sys.executable, "-m", "mlx_peft", *map(str, words)], stdout=sys.stderr)
    if done.returncode:
        sys.exit(done.returncode)


# The images: `WORK/data/SET/train|test/CLASS/NUMBER.png`.


def images_of(options: argparse.Namespace, name: str) -> Iterator[tuple[str, str, Path | np.ndarray]]:
    """Each image of a set: its split, "" where the set has none, its class, and its file or pixels."""
    if name == "textile":
        for file in sorted(options.textile.glob("*/*")):
            yield "", file.parent.name, file
    elif name == "cifar10":
        for split in ("train", "test"):
            for file in sorted(options.cifar10.glob(f"{split}/*/*")):
                yield split, file.parent.name, file
    else:
        named = {"digits": ("digits", Path()), "fashion": ("fashion_mnist", options.fashion)}[name]
        whole = schema.Split(val=0.0, test=0.0)
        found = open_dataset(schema.Data(name=named[0], root=named[1], split=whole))
        for split, images in found.splits.items():
            for row, label in enumerate(images.labels.tolist()):
                kind = found.classes[label].replace("/", "-")
                yield split if len(found.splits) > 1 else "", kind, images.images.read(row)


def write_images(options: argparse.Namespace, name: str, folder: Path) -> None:
    """So many training and test images of each class, drawn from a seed."""
    draw = random.Random(0)
    kinds: dict[str, dict[str, list[Path | np.ndarray]]] = {}
    for split, kind, image in images_of(options, name):
        kinds.setdefault(kind, {}).setdefault(split, []).append(image)
    staged = folder.with_name(f"{name}.part")
    shutil.rmtree(staged, ignore_errors=True)
    for kind, splits in sorted(kinds.items()):
        for images in splits.values():
            draw.shuffle(images)
        if "" in splits:
            tested = round(TEST_SHARE * len(splits[""]))
            splits = {"test": splits[""][:tested], "train": splits[""][tested:]}
        for split, most in (("train", options.train), ("test", options.test)):
            for number, image in enumerate(splits[split][: math.ceil(most / len(kinds))]):
                write_image(image, staged / split / kind / f"{number:04d}.png")
    staged.rename(folder)


def write_image(image: Path | np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, Path):
        shutil.copyfile(image, path.with_suffix(image.suffix))
    else:
        Image.fromarray(image).save(path)


# The adapters, and what they answer.


def train(options: argparse.Namespace, adapter: Adapter, run: Path, images: Path) -> None:
    product(
        "train", "dinov2-small-lora-folder", f"model.weights={options.weights}", f"data.root={images}",
        "data.split={val: 0.1}", f"method={adapter.method}", f"train.optimizer.lr={adapter.lr}",
        f"train.epochs={options.epochs}", "--backend", "torch", "--out", run,
    )  # fmt: skip


def answers(backend: str, out: Path, source: Path, *images: object) -> list[dict]:
    """What is answered of images, by their order: every class with its probability."""
    if not out.exists():
        product("predict", source, *images, "--top", 10, "--backend", backend, "--out", out)
    return [json.loads(line) for line in out.read_text().splitlines()]


def logits(answer: dict) -> dict[str, float]:
    """Less the mean of all classes, which a probability does not say."""
    logs = {guess["class"]: math.log(guess["probability"]) for guess in answer["predictions"]}
    mean = sum(logs.values()) / len(logs)
    return {name: value - mean for name, value in logs.items()}


def right(answer: dict) -> bool:
    return answer["predictions"][0]["class"] == Path(answer["image"]).parent.name


def table(options: argparse.Namespace, backend: str) -> Iterator[str]:
    """Rows of Markdown: each set alone beside its images in the mixed batch."""
    work: Path = options.work
    files = {one.name: sorted((work / "data" / one.name / "test").glob("*/*")) for one in ADAPTERS}
    rows = [(file, name) for name, some in files.items() for file in some]
    random.Random(1).shuffle(rows)
    mixed_table = work / "mixed.csv"
    mixed_table.write_text("image,adapter\n" + "".join(f"{file},{name}\n" for file, name in rows))
    mixed = {
        one["image"]: one
        for one in answers(backend, work / f"mixed-{backend}.jsonl", work / "bank", "--adapters", mixed_table)
    }
    for adapter in ADAPTERS:
        listed = work / f"{adapter.name}.txt"
        listed.write_text("".join(f"{file}\n" for file in files[adapter.name]))
        alone = answers(backend, work / f"{adapter.name}-{backend}.jsonl", work / "bank" / adapter.name, listed)
        beside = [mixed[one["image"]] for one in alone]
        off = max(
            abs(value - logits(other)[name])
            for one, other in zip(alone, beside, strict=True)
            for name, value in logits(one).items()
        )
        trained = sum(1 for _ in (work / "data" / adapter.name / "train").glob("*/*"))
        facts = [adapter.name, adapter.words, f"{trained:,}", f"{len(alone):,}"]
        facts += [f"{100 * sum(map(right, some)) / len(some):.1f} %" for some in (alone, beside)]
        yield f"| {' | '.join([*facts, f'{off:.1e}'])} |"


HEADING = """\
# Four adapters of one backbone, in one mixed batch

Adapters of four methods on one DINOv2 ViT-S/14 at {size} px, each trained with its own head on its own set of real
images for {epochs} epochs (batch 32, cosine schedule, seed 0; a tenth of the training images chooses the epoch). Then
all test images, {count:,}, shuffled in one table: `mlx-peft predict BANK --adapters mixed.csv`. Beside it each set
alone: `mlx-peft predict BANK/SET`. A difference is the largest of all logits of all images, each image's mean over its
classes taken off, as its probabilities do not say it.
"""


ENDING = """\
The runs were trained by the torch backend. The accuracies are those of so few images and epochs, and no more is said by
them. Made by

```
python tests/bench/four_adapters.py WORK --train {train} --test {test} --epochs {epochs} \\
  --weights dinov2_small.safetensors --textile FOLDER --cifar10 FOLDER --fashion FOLDER
```
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="a folder for all that is made")
    for name in ("weights", "textile", "cifar10", "fashion"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--train", type=int, default=1500, help="training images of a set, at most")
    parser.add_argument("--test", type=int, default=1000, help="test images of a set, at most")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--backends", nargs="+", default=["torch", "mlx"], help="that answer; torch trains")
    options = parser.parse_args()
    options.work = options.work.resolve()
    for adapter in ADAPTERS:
        images, run = options.work / "data" / adapter.name, options.work / "bank" / adapter.name
        if not images.exists():
            write_images(options, adapter.name, images)
        if not (run / "result.json").exists():
            train(options, adapter, run, images)
    count = sum(1 for _ in options.work.glob("data/*/test/*/*"))
    print(HEADING.format(size=112, epochs=options.epochs, count=count))
    for backend in options.backends:
        packages = {"torch": ["torch"], "mlx": ["mlx"]}[backend]
        print(f"## {', '.join(f'{one} {version(one)}' for one in packages)}\n")
        print("| images | adapter | to train | to test | top-1 alone | top-1 mixed | largest difference of a logit |")
        print("|---|---|---:|---:|---:|---:|---:|")
        for row in table(options, backend):
            print(row, flush=True)
        print(flush=True)
    print(ENDING.format(train=options.train, test=options.test, epochs=options.epochs))


if __name__ == "__main__":
    main()
