"""PyTorch's files are read as PyTorch reads them, without it."""

import argparse
import collections
import datetime
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from convert.pth import LARGEST_PICKLE, read_pth
from mlx_peft.core.errors import UserError

many = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
old_and_new = pytest.mark.parametrize("archive", [True, False], ids=["archive", "legacy"])

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of any type as it may lie in its storage: whole, turned, a part, every other, or a parameter."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    tensor = torch.from_numpy(np.random.default_rng(draw(st.integers(0, 99))).uniform(-9, 9, shape))
    tensor = tensor.to(draw(st.sampled_from(DTYPES)))
    kind = draw(st.sampled_from(["whole", "turned", "part", "every other", "parameter"]))
    if kind == "turned" and tensor.ndim > 1:
        tensor = tensor.transpose(0, -1)
    if kind == "part" and tensor.ndim and len(tensor):
        tensor = tensor[1:]
    if kind == "every other" and tensor.ndim:
        tensor = tensor[..., ::2]
    if kind == "parameter" and tensor.is_floating_point():
        tensor = nn.Parameter(tensor)
    return tensor


def same(found: dict[str, np.ndarray], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        widened = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
        assert found[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(found[name], widened.numpy())


@old_and_new
@many
@given(state=st.dictionaries(st.text("abc.", min_size=1), tensors(), min_size=1, max_size=5), shared=st.booleans())
def test_any_tensors_are_read_as_pytorch_reads_them(
    archive: bool, state: dict[str, torch.Tensor], shared: bool, tmp_path: Path
) -> None:
    if shared:
        state["tied"] = next(iter(state.values()))
    path = tmp_path / "a.pth"
    torch.save(state, path, _use_new_zipfile_serialization=archive)
    same(read_pth(path), torch.load(path, weights_only=True))


@old_and_new
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_every_protocol_is_read(archive: bool, protocol: int, tmp_path: Path) -> None:
    """From 4 on, names come from the stack and the pickle in frames."""
    state = nn.Linear(3, 2).state_dict()  # an OrderedDict with an attribute
    torch.save(state, tmp_path / "a.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=archive)
    same(read_pth(tmp_path / "a.pth"), state)


@old_and_new
def test_what_training_code_keeps_beside_the_weights_is_left_alone(archive: bool, tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content: dict[str, Any] = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3).state_dict(),
        "args": argparse.Namespace(lr=0.1, device=torch.device("cpu"), names={"a", "b"}, data=Path("x").name),
        "scaler": collections.OrderedDict(scale=2.0),
        "best": np.float64(0.5),
        "shape": torch.Size([1, 2]),
        "dtype": torch.bfloat16,
        "raw": b"\x00\xff",
        "history": collections.defaultdict(list, loss=[1.0]),
        "seen": collections.Counter("ab"),
        "last": collections.deque([1, 2]),
        "frozen": frozenset({1}),
        "folder": Path("runs"),
        "random": np.random.default_rng(0).bit_generator.state,
        "array": np.arange(3),
        "when": datetime.timedelta(seconds=1),
        "kinds": [torch.int64, torch.uint8, torch.strided],
    }
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=archive)
    same(read_pth(tmp_path / "a.pth"), model.state_dict())


@old_and_new
def test_tensors_with_attributes_are_read_without_them(archive: bool, tmp_path: Path) -> None:
    parameter, buffer = nn.Parameter(torch.ones(2)), torch.ones(3)
    parameter.group, buffer.mark = "a", "b"
    torch.save({"p": parameter, "b": buffer}, tmp_path / "a.pth", _use_new_zipfile_serialization=archive)
    same(read_pth(tmp_path / "a.pth"), {"p": parameter, "b": buffer})


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model_state_dict": state, "epoch": 3},
        lambda state: {"net": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        lambda state: {"model": state, "state_dict": state}["model"],
    ],
)
def test_the_only_dictionary_of_tensors_is_the_model(wrap: Any, tmp_path: Path) -> None:
    state = {"a": torch.ones(2), "b": torch.zeros(3)}
    torch.save(wrap(state), tmp_path / "a.pth")
    same(read_pth(tmp_path / "a.pth"), state)


def test_what_has_several_names_is_one_array(tmp_path: Path) -> None:
    tensor = torch.ones(1000, 1000, dtype=torch.float16)
    torch.save({f"name.{index}": tensor for index in range(100)}, tmp_path / "a.pth")
    found = read_pth(tmp_path / "a.pth")
    assert len(found) == 100 and len({id(array) for array in found.values()}) == 1


def test_a_tensor_whose_sign_is_a_mark_is_refused(tmp_path: Path) -> None:
    """torch.imag of a conjugate has the bits of the number and a mark that says minus."""
    torch.save({"a": torch.ones(2, dtype=torch.complex64).conj().imag}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a tensor that is not understood|holds the object"):
        read_pth(tmp_path / "a.pth")


def test_a_module_compiled_to_a_script_says_what_to_do(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a TorchScript archive: save its state_dict\(\)"):
        read_pth(tmp_path / "a.pt")


def collision(count: int) -> bytes:
    """A pickled dictionary whose keys are tuples of -1 and -2, which have the same hash.

    It is put together from pickles of its keys: to make the dictionary would take as long as to read it.
    """
    keys = [tuple(-1 - (index >> bit & 1) for bit in range(16)) for index in range(count)]
    return b"\x80\x02}(" + b"".join(pickle.dumps(key, protocol=2)[2:-1] + b"N" for key in keys) + b"u."


HUNGRY = {
    "one number for all axes": b"\x80\x02\x8b" + (100_000).to_bytes(4, "little") + b"\x01" * 100_000 + b".",
    "sets": b"\x80\x02(" + b"\x8f" * 1_000_000 + b"l.",
    "wide numbers": pickle.dumps(dict.fromkeys(range(5, 5000 * (2**61 - 1), 2**61 - 1)), protocol=2),
    "tuples": collision(30_000),
}
"""Pickles of a megabyte at most that would take gigabytes, or minutes."""


@pytest.mark.parametrize("name", HUNGRY)
def test_what_would_take_minutes_or_gigabytes_is_refused(name: str, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as source, zipfile.ZipFile(tmp_path / "b.pth", "w") as target:
        for entry in source.namelist():
            target.writestr(entry, HUNGRY[name] if entry.endswith("data.pkl") else source.read(entry))
    with pytest.raises(UserError, match=r"b\.pth"):
        read_pth(tmp_path / "b.pth")


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth", "a") as target:
        name = next(name for name in target.namelist() if name.endswith("data/0"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            target.writestr(name, bytes(8))
    with pytest.raises(UserError, match=r"two entries have the same name|claims to hold"):
        read_pth(tmp_path / "a.pth")


def test_a_number_and_a_text_are_not_one_name(tmp_path: Path) -> None:
    torch.save({0: torch.ones(2), "0": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="two tensors have the same name"):
        read_pth(tmp_path / "a.pth")


@pytest.mark.parametrize("order", ["big", "little"])
def test_the_order_of_bytes_is_the_file_s(order: str, tmp_path: Path) -> None:
    state = {"a": torch.arange(5.0), "b": torch.arange(5.0).bfloat16(), "c": torch.arange(5)}
    torch.serialization.set_default_load_endianness(torch.serialization.LoadEndianness.NATIVE)
    torch.save(state, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as source, zipfile.ZipFile(tmp_path / "b.pth", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("/byteorder"):
                content = order.encode()
            elif "/data/" in name and order == "big":
                width = {0: 4, 1: 2, 2: 8}[int(name.rpartition("/")[2])]
                content = np.frombuffer(content, f"u{width}").byteswap().tobytes()
            target.writestr(name, content)
    same(read_pth(tmp_path / "b.pth"), state)


def test_floats_are_mapped_and_the_file_does_not_change(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pth")
    before = (tmp_path / "a.pth").read_bytes()
    tensor = read_pth(tmp_path / "a.pth")["a"]
    base: Any = tensor
    while not isinstance(base, np.memmap):
        base = base.base
    tensor[:] = 2
    assert (tmp_path / "a.pth").read_bytes() == before


def test_pytorch_is_not_needed(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(3.0)}, tmp_path / "a.pth")
    script = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path; from convert.files import read_tensors;"
        "print(read_tensors(Path(sys.argv[1])))"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "a.pth"], capture_output=True, text=True)
    assert "array([0., 1., 2.], dtype=float32)" in done.stdout, done.stderr


FALSEHOODS = [
    ("data/0", b"\x00\x00\xa0\x40", b"", "the storage 0 is too small"),
    ("data.pkl", b"K\x06t", b"J\xff\xff\xff\x7ft", "the storage 0 is too small"),  # so many elements
    ("data.pkl", b"QK\x00", b"QK\x01", "the storage 0 is too small"),  # where the first one is
    ("data.pkl", b"QK\x00", b"QJ\xff\xff\xff\xff", "a tensor of negative or of boundless size"),
    ("data.pkl", b"K\x02K\x03\x86", b"K\x03K\x03\x86", "the storage 0 is too small"),  # the shape
    ("data.pkl", b"K\x02K\x03\x86", b"K\x03\x85", "a tensor that is not understood"),
    ("data.pkl", b"FloatStorage", b"DoubleStorage", "the storage 0 is too small"),
    ("data.pkl", b"FloatStorage", b"ComplexFloatStorage", "holds the object torch.ComplexFloatStorage"),
    ("data.pkl", b"_rebuild_tensor_v2", b"_rebuild_wrapper", "holds the object torch._utils._rebuild_wrapper"),
    ("data.pkl", b"storage", b"steward", "a storage that is not understood"),
    ("data.pkl", b"s.", b"s" + b"\x880" * (LARGEST_PICKLE // 2) + b".", "its list of tensors has 2,097"),
]
"""An entry of the archive, what is replaced in it, by what, and what is said of that."""


@pytest.mark.parametrize(("entry", "true", "false", "message"), FALSEHOODS)
def test_an_archive_that_says_what_is_not_so_is_refused(
    entry: str, true: bytes, false: bytes, message: str, tmp_path: Path
) -> None:
    torch.save({"a": torch.arange(6.0).reshape(2, 3)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as source, zipfile.ZipFile(tmp_path / "b.pth", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            assert not name.endswith(entry) or true in content
            target.writestr(name, content.replace(true, false) if name.endswith(entry) else content)
    with pytest.raises(UserError, match=message):
        read_pth(tmp_path / "b.pth")


@old_and_new
@many
@given(data=st.data())
def test_a_damaged_file_is_refused_by_name_or_read(archive: bool, data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a": torch.arange(6.0), "b": torch.ones(2, 2)}, path, _use_new_zipfile_serialization=archive)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = read_pth(path)
    except UserError as error:
        assert str(error).startswith(str(path))
    else:
        assert sum(tensor.size for tensor in found.values()) <= len(content)
