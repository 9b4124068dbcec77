"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): IDX files of 28 x 28 grey images, compressed or not."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data.dataset import ArrayImages, Split
from mlx_peft.data.download import Remote, fetch
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.looking import Watch

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SIDE = 28
SIZES = {"train": 60_000, "t10k": 10_000}
FOLDERS = (".", "FashionMNIST/raw", "fashion_mnist", "fashion-mnist")
"""The files are looked for in these folders below the root; the second is torchvision's."""

_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
REMOTES = tuple(
    Remote(f"{_URL}{name}.gz", size, sha256)
    for name, size, sha256 in (
        (
            "train-images-idx3-ubyte",
            26_421_880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        ("train-labels-idx1-ubyte", 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        ("t10k-images-idx3-ubyte", 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        ("t10k-labels-idx1-ubyte", 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    )
)


def read_fashion_mnist(config: schema.Data, variant: Variant, watch: Watch) -> Found:
    """The official 60,000 training and 10,000 test images.

    Raises UserError where a file is missing, damaged or of another size.
    """
    folder = _find(config.root)
    notes: tuple[str, ...] = ()
    if folder is None and config.download:
        folder = config.root
        for remote in REMOTES:
            fetch(remote, folder)
        notes = (f"downloaded {_URL}",)
    if folder is None:
        raise UserError(
            f"fashion_mnist: no train-images-idx3-ubyte[.gz] in {config.root}; set data.download: true "
            f"({sum(remote.size or 0 for remote in REMOTES) / 2**20:.0f} MiB from {_URL}), or data.root to where it is"
        )
    train, test = (_read_split(folder, name, prefix) for name, prefix in (("train", "train"), ("test", "t10k")))
    return Found(CLASSES, {"train": train, "test": test}, notes)


def _find(root: Path) -> Path | None:
    for folder in FOLDERS:
        for suffix in ("", ".gz"):
            if (root / folder / f"train-images-idx3-ubyte{suffix}").is_file():
                return root / folder
    return None


def _read_split(folder: Path, name: str, prefix: str) -> Split:
    size = SIZES[prefix]
    pixels = read_idx(folder / f"{prefix}-images-idx3-ubyte", (size, SIDE, SIDE))
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte", (size,))
    if labels.max() >= len(CLASSES):
        raise UserError(
            f"{folder / f'{prefix}-labels-idx1-ubyte'}: labels should be 0 to {len(CLASSES) - 1}; there is "
            f"{labels.max()}"
        )
    return Split(name, ArrayImages.whole(pixels, name), labels.astype(np.int64))


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 array of the given shape from an IDX file, or from the same with ``.gz`` after its name.

    Raises UserError where neither is there, or where header or length say something else.
    """
    header = bytes((0, 0, 8, len(shape))) + b"".join(side.to_bytes(4, "big") for side in shape)
    expected = len(header) + int(np.prod(shape))
    try:
        if path.is_file():
            with path.open("rb") as file:
                data = file.read(expected + 1)
        else:
            path = path.with_name(f"{path.name}.gz")
            with gzip.open(path, "rb") as file:
                data = file.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not data.startswith(header):
        raise UserError(f"{path} should be an IDX file of uint8 {shape}, and does not begin like one")
    if len(data) != expected:
        more = "more than " if len(data) > expected else ""
        raise UserError(f"{path} has {more}{min(len(data), expected)} bytes; {shape} needs {expected}")
    return np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape)


ENTRIES = {
    "fashion_mnist": Entry(
        read=read_fashion_mnist,
        description="70,000 grey articles of clothing of 28 px in 10 classes, 10,000 for the test",
        source="https://github.com/zalandoresearch/fashion-mnist",
        licence="MIT",
        classes=len(CLASSES),
        names=CLASSES,
        variants=(
            Variant(
                "official", "the published training and test images", {"train": SIZES["train"], "test": SIZES["t10k"]}
            ),
        ),
    )
}
