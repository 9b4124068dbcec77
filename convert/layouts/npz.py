"""Google's original ViTs: JAX's arrays in an ``.npz``, as ``gs://vit_models/augreg`` and ``imagenet21k`` have them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from convert.files import finite
from convert.layouts.layout import Asked, Layout, Reading, contiguous, inferred, shape
from convert.layouts.renaming import Pair, pair, to_timm
from convert.tensor_file import LONGEST_NAME
from mlx_peft.core import damage
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Preprocessing

LARGEST_RATIO = 4
"""The bytes inside an archive are at most so many times its own: weights hardly compress, and a small file must not
fill the memory."""


def read_npz(path: Path) -> Tensors:
    """The float arrays of an archive as float32; no pickle is opened.

    Raises:
        UserError: where the file is missing or damaged, claims to be much larger inside than outside, or holds objects
            or values that are not finite.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    tensors: Tensors = {}
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            claimed, size = sum(entry.file_size for entry in entries), path.stat().st_size
            if claimed > LARGEST_RATIO * size:
                raise UserError(f"{path} is an archive of {size:,} bytes that claims to hold {claimed:,}")
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if len(name) > LONGEST_NAME:
                    raise UserError(
                        f"{path}: an array's name has {len(name):,} characters, and may have {LONGEST_NAME}"
                    )
                with archive.open(entry) as file:
                    dtype, dimensions, fortran = _header(file)
                    if dtype.hasobject:
                        raise UserError(f"{path}: {name} holds Python objects, which are never loaded")
                    if dtype.kind != "f":
                        raise UserError(f"{path}: these arrays are not of a float type: {name} ({dtype})")
                    count = int(np.prod(dimensions, dtype=object))
                    if count * dtype.itemsize > entry.file_size:
                        raise UserError(f"{path}: {name} claims the shape {dimensions} in {entry.file_size:,} bytes")
                    values = np.frombuffer(file.read(count * dtype.itemsize), dtype)
                    if values.size != count:
                        raise ValueError(f"{name} ends too early")
                    shaped = values.reshape(dimensions[::-1]).T if fortran else values.reshape(dimensions)
                    tensors[name] = shaped.astype(np.float32, order="C")
    except (OSError, *damage.NPZ) as error:
        raise UserError(f"{path}: not a whole .npz archive: {error or 'it ends too early'}") from error
    if not tensors:
        raise UserError(f"{path} is an archive without arrays")
    return finite(path, tensors)


def _header(file: IO[bytes]) -> tuple[np.dtype, tuple[int, ...], bool]:
    """An array's type, shape and whether its columns come first. Raises ValueError."""
    version = np.lib.format.read_magic(file)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if reader is None:
        raise ValueError(f"an array in format {version}")
    dimensions, fortran, dtype = reader(file)
    return dtype, dimensions, fortran


def _matrix(tensor: np.ndarray) -> np.ndarray:
    """``(in, out)`` to ``(out, in)``."""
    return contiguous(_of(tensor, 2).T)


def _heads_out(tensor: np.ndarray) -> np.ndarray:
    """``(in, heads, width)`` to ``(out, in)``."""
    tensor = _of(tensor, 3)
    return contiguous(tensor.reshape(len(tensor), -1).T)


def _heads_in(tensor: np.ndarray) -> np.ndarray:
    """``(heads, width, out)`` to ``(out, in)``."""
    tensor = _of(tensor, 3)
    return contiguous(tensor.reshape(-1, tensor.shape[-1]).T)


def _kernel(tensor: np.ndarray) -> np.ndarray:
    """``(height, width, in, out)`` to ``(out, in, height, width)``."""
    return contiguous(_of(tensor, 4).transpose(3, 2, 0, 1))


def _of(tensor: np.ndarray, dimensions: int) -> np.ndarray:
    if tensor.ndim != dimensions:
        raise ValueError(f"it should have {dimensions} dimensions")
    return tensor


BLOCK = "Transformer/encoderblock_{i}"
ATTENTION = f"{BLOCK}/MultiHeadDotProductAttention_1"


def _norm(ours: str, theirs: str) -> list[Pair]:
    return pair(f"{ours}.weight", f"{theirs}/scale") + pair(f"{ours}.bias", f"{theirs}/bias")


def _dense(ours: str, theirs: str) -> list[Pair]:
    return pair(f"{ours}.weight", f"{theirs}/kernel", to_ours=_matrix) + pair(f"{ours}.bias", f"{theirs}/bias")


PAIRS = [
    *pair("cls_token", "cls"),
    *pair("pos_embed", "Transformer/posembed_input/pos_embedding"),
    *pair("patch_embed.proj.weight", "embedding/kernel", to_ours=_kernel),
    *pair("patch_embed.proj.bias", "embedding/bias"),
    *_norm("blocks.{i}.norm1", f"{BLOCK}/LayerNorm_0"),
    *pair(
        "blocks.{i}.attn.qkv.weight",
        *(f"{ATTENTION}/{n}/kernel" for n in ("query", "key", "value")),
        to_ours=_heads_out,
    ),
    *pair("blocks.{i}.attn.qkv.bias", *(f"{ATTENTION}/{n}/bias" for n in ("query", "key", "value")), to_ours=np.ravel),
    *pair("blocks.{i}.attn.proj.weight", f"{ATTENTION}/out/kernel", to_ours=_heads_in),
    *pair("blocks.{i}.attn.proj.bias", f"{ATTENTION}/out/bias"),
    *_norm("blocks.{i}.norm2", f"{BLOCK}/LayerNorm_2"),
    *_dense("blocks.{i}.mlp.fc1", f"{BLOCK}/MlpBlock_3/Dense_0"),
    *_dense("blocks.{i}.mlp.fc2", f"{BLOCK}/MlpBlock_3/Dense_1"),
    *_norm("norm", "Transformer/encoder_norm"),
    *_dense("pre_logits.fc", "pre_logits"),
    *_dense("head", "head"),
]
QUERY = f"{ATTENTION}/query/kernel".replace("{i}", "0")

PREPROCESSING = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic", crop_pct=0.9)
"""timm evaluates these weights so: with Google's normalisation and its own crop."""


def read(tensors: Tensors, path: Path, asked: Asked) -> Reading:
    """An archive's arrays as timm's tensors; see ``Layout``. The number of heads is in the shapes."""
    _, heads, _ = shape(tensors, QUERY, 3, path)
    ours = to_timm(tensors, PAIRS, str(path))
    architecture = inferred(ours, heads, path)
    return Reading(ours, architecture, PREPROCESSING)


LAYOUT = Layout("npz", "Google's original ViT", "embedding/kernel", read)
