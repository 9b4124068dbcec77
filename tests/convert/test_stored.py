"""The size of a file, told without writing it."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.base import load_base
from convert.files import write_safetensors
from convert.stored import file_bytes, model_bytes
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Model

DTYPES = {"F32": np.float32, "U32": np.uint32}
SHAPE = st.lists(st.integers(0, 40), max_size=3).map(tuple)
LAYOUT = st.dictionaries(st.text("abc.é0_", min_size=1, max_size=12), st.tuples(st.sampled_from(list(DTYPES)), SHAPE))


@settings(max_examples=100)
@given(LAYOUT)
def test_a_file_has_the_size_that_was_told(layout):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        write_safetensors(path, {name: np.zeros(shape, DTYPES[dtype]) for name, (dtype, shape) in layout.items()})
        assert file_bytes(layout) == path.stat().st_size


@pytest.mark.parametrize("bits", [None, 8, 4, 3])
def test_a_model_has_the_size_of_its_file(tmp_path, bits):
    small = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    base = load_base(Model(name="vit_tiny_patch16_224", weights="none", image_size=32, args=small), 5, 0)
    quantization = bits and Quantization(bits=bits)
    tensors, plain = dict(base.tensors), {name: tensor.shape for name, tensor in base.tensors.items()}
    if quantization:
        for name, shape in quantization.stored(base.architecture, plain).items():
            if shape != plain.get(name):
                tensors[name] = np.zeros(shape, np.uint32 if name.endswith("weight") else np.float32)
    write_safetensors(tmp_path / "model.safetensors", tensors)
    assert model_bytes(base.architecture, 5, quantization) == (tmp_path / "model.safetensors").stat().st_size
