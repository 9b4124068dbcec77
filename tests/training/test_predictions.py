"""What a run said of each image is kept with it, and read back as what it is."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mlx_peft.core.errors import UserError
from mlx_peft.training import predictions
from mlx_peft.training.evaluate import measured
from mlx_peft.training.predictions import read_predictions
from mlx_peft.training.run import RunFolder
from mlx_peft.training.train import train

Arrays = dict[str, np.ndarray]


def test_a_run_keeps_what_it_said_of_each_image_it_was_measured_on(engine: SimpleNamespace) -> None:
    result = train(engine.experiment(), engine.out)
    found, dataset = read_predictions(engine.out), engine.dataset()
    assert found is not None and list(found) == ["val", "test"]
    for split in ("val", "test"):
        one, images = found[split], dataset.splits[split]
        assert one.identifiers.tolist() == list(images.images.identifiers)
        assert one.logits.dtype == np.float32 and one.logits.shape == (21, 3)
        np.testing.assert_array_equal(one.labels, images.labels)
        # Logits are kept in float32, which the fake's are: nothing is rounded.
        again = measured([(one.logits.astype(np.float64), one.labels)], dataset.task, 3)
        assert again == pytest.approx(result["metrics"][split], rel=1e-12)


def test_equal_runs_keep_equal_bytes(engine: SimpleNamespace, tmp_path: Path) -> None:
    for out in (engine.out, tmp_path / "again"):
        train(engine.experiment(), out)
    assert (engine.out / "predictions.npz").read_bytes() == (tmp_path / "again" / "predictions.npz").read_bytes()


def test_without_a_split_there_is_nothing_of_it(engine: SimpleNamespace) -> None:
    engine.install(engine.dataset(val=False))
    train(engine.experiment(), engine.out)
    found = read_predictions(engine.out)
    assert found is not None and list(found) == ["test"]


def test_a_run_of_before_they_were_kept_opens_and_has_none(engine: SimpleNamespace) -> None:
    result = train(engine.experiment(), engine.out)
    (engine.out / "predictions.npz").unlink()
    assert read_predictions(engine.out) is None
    assert train(engine.experiment(), engine.out, resume=True) == result


def arrays(engine: SimpleNamespace) -> Arrays:
    """Those of a file of a run, to be changed and written in its place, without a digest."""
    train(engine.experiment(), engine.out)
    (engine.out / "SHA256SUMS.txt").unlink()
    with np.load(engine.out / "predictions.npz") as found:
        return dict(found)


def set_to(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], None]:
    return lambda found: found.update({name: change(found[name])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_to("val_logits", lambda a: a[1:]), "val is not what a run writes: 21 identifiers, 20 rows"),
        (set_to("val_logits", lambda a: a.astype(np.float64)), "val_logits is float64"),
        (set_to("val_logits", lambda a: a[:, 0]), "val_logits is float32 (21,), not text or numbers (n, n)"),
        (set_to("val_logits", lambda a: a * np.float32(np.inf)), "NaN or infinite"),
        (set_to("test_identifiers", lambda a: np.array(["one"] * 21)), "two images have one identifier"),
        (set_to("test_identifiers", lambda a: a.astype(object)), "test_identifiers is object"),
        (set_to("test_labels", lambda a: a.astype(str)), "labels numbers"),
        (lambda found: found.pop("test_labels"), "no array 'test_labels'"),
    ],
)
def test_arrays_that_are_no_runs_are_refused_in_words(
    engine: SimpleNamespace, change: Callable[[Arrays], object], message: str
) -> None:
    found = arrays(engine)
    change(found)
    np.savez(engine.out / "predictions.npz", **found)
    with pytest.raises(UserError) as caught:
        read_predictions(engine.out)
    assert message in str(caught.value) and "predictions.npz" in str(caught.value)


def test_a_header_that_claims_more_than_there_is_allocates_nothing(engine: SimpleNamespace) -> None:
    found = arrays(engine)
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file,
        {"descr": "<f4", "fortran_order": False, "shape": (2**40, 3)},
    )
    np.savez(engine.out / "predictions.npz", **{name: a for name, a in found.items() if name != "val_logits"})
    with zipfile.ZipFile(engine.out / "predictions.npz", "a") as archive:
        archive.writestr("val_logits.npy", file.getvalue())
    with pytest.raises(UserError, match="val_logits has 13,194,139,533,312 bytes; at most"):
        read_predictions(engine.out)


def test_names_that_would_fill_the_memory_are_not_unpacked(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays(engine)
    monkeypatch.setattr(predictions, "MOST_NAMES", 100)
    with pytest.raises(UserError, match=r"val_identifiers has .* bytes; at most 100 are unpacked"):
        read_predictions(engine.out)
    monkeypatch.setattr(predictions, "LARGEST", 100)
    with pytest.raises(UserError, match=r"predictions\.npz has .* bytes, and no run's has more than 300"):
        read_predictions(engine.out)


def test_a_flipped_bit_is_noticed_and_a_file_that_is_no_archive_too(engine: SimpleNamespace) -> None:
    train(engine.experiment(), engine.out)
    path = RunFolder(engine.out).predictions
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="was damaged or changed"):
        read_predictions(engine.out)
    (engine.out / "SHA256SUMS.txt").unlink()
    path.write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="not a readable npz"):
        read_predictions(engine.out)
