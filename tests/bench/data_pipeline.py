"""Images a second of the input pipeline beside a torch DataLoader with torchvision transforms, on the same JPEGs.

    python tests/bench/data_pipeline.py ROOT [--rounds 5] [--image-size 224] [--threads 2] [--batch-size 32]

ROOT holds a folder of images for each class. Each contender reads every image once a round: decode, random resized
crop, flip, batch. Rounds are interleaved, so that what else the machine does falls on all alike; the ratio is the
median of the rounds' ratios to the DataLoader that emits uint8, as the pipeline does. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torchvision
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from mlx_peft.config import schema
from mlx_peft.config.architecture import Preprocessing
from mlx_peft.data import native, open_dataset, train_batches

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pipeline(arguments: argparse.Namespace, interpolation: str) -> Callable[[], Iterable[object]]:
    config = schema.Data(
        name="folder",
        root=arguments.root,
        batch_size=arguments.batch_size,
        threads=arguments.threads,
        split=schema.Split(val=0),
        augment=schema.Augment(crop="random_resized", flip=True),
    )
    split = open_dataset(config).train
    preprocessing = Preprocessing(mean=MEAN, std=STD, interpolation=interpolation)
    return lambda: train_batches(split, config, preprocessing, arguments.image_size, seed=0, epoch=0)


def without_mlx_data(batches: Callable[[], Iterable[object]]) -> Callable[[], Iterable[object]]:
    def run() -> Iterable[object]:
        found, native._mlx_data = native._mlx_data, lambda: None
        try:
            yield from batches()
        finally:
            native._mlx_data = found

    return run


def loader(arguments: argparse.Namespace, *last: object, interpolation: InterpolationMode) -> Iterable[object]:
    crop = transforms.RandomResizedCrop(arguments.image_size, interpolation=interpolation)
    images = torchvision.datasets.ImageFolder(
        arguments.root, transforms.Compose([crop, transforms.RandomHorizontalFlip(), *last])
    )
    return torch.utils.data.DataLoader(
        images, arguments.batch_size, shuffle=True, num_workers=arguments.threads, persistent_workers=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2, help="of the pipeline, and workers of the DataLoader")
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()

    bilinear, bicubic = InterpolationMode.BILINEAR, InterpolationMode.BICUBIC
    normalised = transforms.ToTensor(), transforms.Normalize(MEAN, STD)
    torch_bilinear = loader(arguments, transforms.PILToTensor(), interpolation=bilinear)
    torch_bicubic = loader(arguments, transforms.PILToTensor(), interpolation=bicubic)
    torch_float = loader(arguments, *normalised, interpolation=bilinear)
    contenders: dict[str, tuple[Callable[[], Iterable[object]], str]] = {
        "torch DataLoader, bilinear, uint8": (lambda: torch_bilinear, "torch DataLoader, bilinear, uint8"),
        "torch DataLoader, bilinear, normalised": (lambda: torch_float, "torch DataLoader, bilinear, uint8"),
        "mlx-peft, bilinear": (pipeline(arguments, "bilinear"), "torch DataLoader, bilinear, uint8"),
        "mlx-peft, bilinear, without mlx-data": (
            without_mlx_data(pipeline(arguments, "bilinear")),
            "torch DataLoader, bilinear, uint8",
        ),
        "torch DataLoader, bicubic, uint8": (lambda: torch_bicubic, "torch DataLoader, bicubic, uint8"),
        "mlx-peft, bicubic": (pipeline(arguments, "bicubic"), "torch DataLoader, bicubic, uint8"),
    }
    images = len(torch_bilinear.dataset)
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for batches, _ in contenders.values():
        next(iter(batches()))
    for _ in range(arguments.rounds):
        for name, (batches, _) in contenders.items():
            start = time.perf_counter()
            for _batch in batches():
                pass
            speeds[name].append(images / (time.perf_counter() - start))

    print(
        f"{images} images to {arguments.image_size} px, batches of {arguments.batch_size}, {arguments.threads} threads "
        f"or workers, {arguments.rounds} interleaved rounds; torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, Python {platform.python_version()}, {platform.machine()}\n"
    )
    print("| pipeline | images/s, median | lowest to highest | median ratio to the DataLoader |\n|---|---:|---:|---:|")
    for name, (_, reference) in contenders.items():
        found, ratios = speeds[name], [a / b for a, b in zip(speeds[name], speeds[reference], strict=True)]
        print(
            f"| {name} | {statistics.median(found):,.0f} | {min(found):,.0f} to {max(found):,.0f} "
            f"| {statistics.median(ratios):.2f} |"
        )


if __name__ == "__main__":
    main()
