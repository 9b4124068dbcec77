"""What an earlier version wrote is opened, answers as it did there, and goes on to where it would have gone there.

Each folder here is of a version, and ``README.md`` says how it was made. Where this machine rounds as the one that made
it did, which is tried, results are compared bit for bit; elsewhere within a tolerance, and a warning says so.
"""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from comparing import LOGITS, relative
from earlier.reading import BACKENDS, ROUNDS, answering, logits, one_thread
from safetensors.numpy import load_file

from convert.adapters.peft import WEIGHTS, read_adapter
from mlx_peft.config.files import load
from mlx_peft.training.train import train

HERE = Path(__file__).parent
VERSIONS = sorted(path for path in HERE.iterdir() if (path / "made_with.json").is_file())
METHODS = {
    *(
        "linear",
        "full",
        "bitfit",
        "layernorm",
        "lora",
        "qalora",
        "adalora",
        "vera",
        "fact",
        "ia3",
        "ssf",
        "adaptformer",
    ),
    "vpt",
}

PARAMETERS = 1e-4
"""Largest ``relative`` of all of them together, after some twenty steps of Adam on gradients that differ by roundings:
it divides small ones by themselves (other kernels of one processor: 7e-8)."""

FACTS = "result.json"

BESIDE = (
    "what x gets from the update beside W is added to what it gets from W by the product itself, and no longer in a "
    "pass of its own; the gradient of B is one product of all rows, and no longer a sum of one for each image"
)
REORDERED = {
    "lora-in-parts-mlx": "the norm by which gradients are clipped is summed over each array as a contiguous one has "
    "its numbers, and no longer over a transposed one as it lies: so several processes have it too, to the last bit",
    "lora-mlx": BESIDE,
    "codes-lora-mlx": BESIDE,
}
"""Stopped runs that no longer go on to the very bytes, each with the operation that has another order, and why."""


def of_versions(kind: str) -> list[pytest.param]:
    """The entries of a folder in each version."""
    return [pytest.param(entry, id=f"{version.name}-{entry.name}") for version in VERSIONS
            for entry in sorted((version / kind).iterdir())]  # fmt: skip


@pytest.fixture(scope="module")
def exact():
    """Whether a version's results on a backend can be had again to the bit."""
    known = {backend: rounds() for backend, rounds in ROUNDS.items()}

    def found(version: Path, backend: str) -> bool:
        made = json.loads((version / "made_with.json").read_text())["rounds"]
        if made[backend] != known[backend]:
            warnings.warn(
                f"{backend} rounds here otherwise than where {version.name} was: no bits compared", stacklevel=2
            )
        return made[backend] == known[backend]

    return found


@pytest.fixture(autouse=True)
def as_there():
    with one_thread():
        yield


@pytest.mark.one_in(2)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "place",
    [pytest.param((version, name), id=f"{version.name}-{name}") for version in VERSIONS for name in answering(version)],
)
def test_the_logits_are_those_of_then(place, backend, exact):
    version, name = place
    recorded = load_file(version / "logits.safetensors")
    found, expected = logits(version / name, backend, recorded["images"]), recorded[f"{backend}/{name}"]
    assert found.shape == expected.shape
    assert relative(found, expected) <= LOGITS
    if backend == "torch" and exact(version, backend):
        assert found.tobytes() == expected.tobytes()


def gone_on(half: Path, tmp_path: Path) -> tuple[dict, dict, dict]:
    """The result of a run that goes on from its half, and what its adapter holds now and held then."""
    run, ended = shutil.copytree(half, tmp_path / "run"), half.parents[1] / "ended" / half.name
    result, expected = train(load(run / "config.yaml"), run, resume=True), json.loads((ended / FACTS).read_text())
    assert (result["run_id"], result["splits"]) == (expected["run_id"], expected["splits"])
    found, there = (load_file(folder / WEIGHTS) for folder in (run / "adapter", ended))
    assert {name: tensor.shape for name, tensor in found.items()} == {name: t.shape for name, t in there.items()}
    assert relative(*(np.concatenate([one[name].ravel() for name in there]) for one in (found, there))) <= PARAMETERS
    return result["metrics"], found, there


def in_one_backend(stopped: list[pytest.param]) -> list[pytest.param]:
    """Every kind of stopped run in the one backend or in the other, by turns; that of the other is slow."""
    kinds = sorted({run.values[0].name.rpartition("-")[0] for run in stopped})
    of_every_day = {f"{kind}-{[*BACKENDS][number % len(BACKENDS)]}" for number, kind in enumerate(kinds)}
    rest = [run for run in stopped if run.values[0].name not in of_every_day]
    return [pytest.param(*run.values, id=run.id, marks=[pytest.mark.slow] * (run in rest)) for run in stopped]


@pytest.mark.parametrize("half", in_one_backend(of_versions("stopped")))
def test_a_stopped_run_goes_on_to_where_it_would_have_ended(half, exact, tmp_path):
    metrics, found, there = gone_on(half, tmp_path)
    if exact(half.parents[1], load(half / "config.yaml").backend) and half.name not in REORDERED:
        assert not [name for name, tensor in there.items() if found[name].tobytes() != tensor.tobytes()]
        assert metrics == json.loads((half.parents[1] / "ended" / half.name / FACTS).read_text())["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("half", [half for half in of_versions("stopped") if half.id.endswith("mlx")])
def test_a_stopped_run_that_is_compiled_goes_on_to_the_same_end(half, tmp_path, compiled):
    gone_on(half, tmp_path)


@pytest.mark.parametrize("run", of_versions("finished"))
def test_a_finished_run_has_the_result_that_it_had(run):
    result = json.loads((run / "result.json").read_text())
    assert train(load(run / "config.yaml"), run, resume=True) == result


def test_every_method_and_every_kind_is_there():
    (version,) = VERSIONS
    adapters = [read_adapter(folder) for folder in sorted((version / "adapters").iterdir()) if folder.name != "base"]
    assert {adapter.method.name for adapter in adapters} == METHODS
    assert {(adapter.quantize is not None, adapter.qat is not None) for adapter in adapters} == {
        (False, False), (True, False), (False, True),
    }  # fmt: skip
    assert {adapter.task.name for adapter in adapters} == {"single_label_classification", "multi_label_classification"}
    assert {load(path / "config.yaml").backend for path in (version / "stopped").iterdir()} == set(BACKENDS)
