"""What a model can be written as: one entry for each format, by the name that ``convert --to`` gives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.adapters.abroad import Choice, of_torchvision, of_transformers, of_transformers_4, write_for
from convert.adapters.formats import FORMATS
from convert.adapters.peft import Adapter, write_adapter
from convert.base import Base
from convert.files import write_json, write_safetensors
from convert.layouts import processor, torchvision, transformers
from convert.layouts.processor import CONFIG as PROCESSOR
from convert.timm.config import timm_arguments
from convert.timm.write import write_model
from mlx_peft.artifacts.export import RUNTIMES, Exported, class_names, export_model
from mlx_peft.artifacts.source import Source
from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.quantization import Quantization
from mlx_peft.core.errors import UserError
from mlx_peft.core.writing import new_folder
from mlx_peft.protocols.loading import must_have_exporter

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Job:
    """A model that is to be written.

    Attributes:
        tensors: timm's state dictionary; quantised, the codes are in it.
        classes: names; empty where they are unknown.
        dtype: of the floats in the file.
        adapter: that it is from; None where it is from none.
    """

    base: Base
    tensors: dict[str, np.ndarray]
    classes: Sequence[str]
    dtype: str
    quantization: Quantization | None
    adapter: Adapter | None


@dataclass(frozen=True)
class Target:
    """A format that a checkpoint has.

    Attributes:
        fits: raises UserError where the format cannot hold a model that was found.
        write: writes a job to a path that is not there, and returns notes for a person. Raises UserError where the
            format cannot hold the model.
        opener: how its own library opens what was written: a name in ``torch_ref.tools.foreign``; None: it is ours.
        opened: the same for a person, with ``{out}`` for the path.
        dtypes: that the floats may have.
        whole: whether it is a whole model, and not an adapter.
        needs_head: whether there is no such file without a classifier.
    """

    fits: Callable[[Source], None]
    write: Callable[[Path, Job], list[str]]
    opener: str | None
    opened: str
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    whole: bool = True
    needs_head: bool = False

    def ready(self, out: Path) -> None:
        """Raises UserError where nothing of the format can be written at ``out``, whatever the source is."""

    def takes(self, method: type[MethodConfig]) -> None:
        """Raises UserError where the format holds adapters, and PEFT, which reads them, does not know the method."""
        if not self.whole:
            _must_be_in_peft(method)

    def width(self, dtype: str | None, quantization: Quantization | None) -> int:
        """The fewest bytes that a number takes in the file; 0 where it is an adapter, or most of them are codes."""
        return 0 if quantization is not None or not self.whole else {"float32": 4}.get(dtype or "float32", 2)

    def check(self, found: Source) -> None:
        """Raises UserError where the source is not what the format is for, or cannot be held by it, before any work."""
        if not self.whole and found.adapter is None:
            raise UserError(
                "the format holds an adapter: name a run or an adapter, not a whole model", arguments=("to",)
            )
        must_have_head(found, self.needs_head)
        self.fits(found)


@dataclass(frozen=True)
class Runtime:
    """A format of another runtime, a kind of ``mlx_peft.artifacts.export``, which writes and proves it."""

    kind: str
    opened: str
    dtypes: tuple[str, ...] = ("float32",)

    def check(self, found: Source) -> None:
        """Raises UserError where the source is not what the format is for, before any work."""
        must_have_head(found, True)
        class_names(found.classes, len(found.base.tensors["head.weight"]))

    def ready(self, out: Path) -> None:
        """Raises UserError at a name that such a file does not have, and where what writes it is not installed."""
        RUNTIMES[self.kind].must_be_name_of(out)
        must_have_exporter(self.kind)

    def takes(self, method: type[MethodConfig]) -> None:
        """Every method: what an adapter makes of its model is one as any other."""

    def width(self, dtype: str | None, quantization: Quantization | None) -> int:
        """The fewest bytes that a number takes in the file."""
        return 2 if self.dtypes == ("float16",) else 4

    def export(self, out: Path, job: Job, verify: bool) -> Exported:
        """Writes a job to ``out``. Raises UserError where that cannot be, or its proof fails."""
        return export_model(self.kind, out, base=job.base, tensors=job.tensors, classes=job.classes, verify=verify)


def must_have_head(found: Source, needed: bool) -> None:
    """Raises UserError where a classifier is needed and there is none."""
    if needed and "head.weight" not in found.base.tensors:
        notes = "".join(f"\n  note: {note}" for note in found.base.notes)
        raise UserError(
            f"the format needs a classifier, and the source has none: train one, or choose another format{notes}"
        )


def _must_be_in_peft(method: type[MethodConfig]) -> None:
    if FORMATS[method].from_peft is not None:
        return
    instead = ": convert the run to a whole model, such as timm's" if method.unmerged is None else ""
    raise UserError(
        f"Hugging Face PEFT has no method {method.model_fields['name'].default!r}{instead}", arguments=("to",)
    )


def _anything(found: Source) -> None:
    """Of a format that holds every model."""


def _fits_timm(found: Source) -> None:
    try:
        timm_arguments(found.asked.architecture, found.asked.name.partition(".")[0])
    except UserError as error:
        raise UserError(
            f"{error}: the format mlx holds it; or give the fields timm's own values, and how much that changes the "
            "logits is printed",
            arguments=("to", "args"),
        ) from error


def _fits_transformers(found: Source) -> None:
    base = found.asked
    transformers.class_for(base.architecture, base.tensors)
    processor.write(base.preprocessing, base.architecture.img_size)


def _fits_torchvision(found: Source) -> None:
    torchvision.must_fit(found.asked.architecture)


def _timm(out: Path, job: Job) -> list[str]:
    write_model(out, base=job.base, tensors=job.tensors, classes=job.classes, dtype=job.dtype)
    return []


def _mlx(out: Path, job: Job) -> list[str]:
    write_model(
        out, base=job.base, tensors=job.tensors, classes=job.classes, dtype=job.dtype, quantization=job.quantization,
        exactly=True,
    )  # fmt: skip
    return []


def _transformers(out: Path, job: Job) -> list[str]:
    base = job.base
    config, processor, tensors = transformers.pack(
        base.architecture, base.preprocessing, job.tensors, job.classes, base.task
    )
    with new_folder(out) as new:
        write_json(new / transformers.CONFIG, config | {"dtype": job.dtype})
        write_json(new / PROCESSOR, processor)
        write_safetensors(new / transformers.WEIGHTS, tensors, {"format": "pt"}, job.dtype)
    return []


def _torchvision(out: Path, job: Job) -> list[str]:
    tensors = torchvision.pack(job.base.architecture, job.tensors)
    with new_folder(out) as new:
        write_safetensors(new / WEIGHTS, tensors, {"format": "pt"}, job.dtype)
    recipe = job.base.preprocessing
    reading = job.base.task.reading
    notes = [] if reading is None else [f"nor does it say how its logits are read: {reading}"]
    return [
        "a state dictionary holds no preprocessing and no class names; the images are to be prepared with "
        f"mean {recipe.mean}, std {recipe.std}, {recipe.interpolation}, crop {recipe.crop_pct:.4g} "
        f"({recipe.crop_mode})",
        *notes,
    ]


def _peft(out: Path, job: Job) -> list[str]:
    assert job.adapter is not None
    return write_adapter(out, job.adapter)


def _fits_over(choice: Choice) -> Callable[[Source], None]:
    """Whether another library has a model for the adapter."""

    def fits(found: Source) -> None:
        assert found.adapter is not None
        choice(found.base.architecture, found.adapter.tensors)

    return fits


def _over(choice: Choice) -> Callable[[Path, Job], list[str]]:
    """Writes an adapter for another library's model."""

    def write(out: Path, job: Job) -> list[str]:
        assert job.adapter is not None
        return write_for(choice, out, job.adapter, job.base.architecture)

    return write


def _adapter_over(choice: Choice, opened: str) -> Target:
    return Target(_fits_over(choice), _over(choice), "peft", opened, ("float32",), whole=False)


PEFT = 'peft.PeftModel.from_pretrained(model, "{out}")'
TARGETS: dict[str, Target | Runtime] = {
    "timm": Target(_fits_timm, _timm, "timm folder", 'timm.create_model("local-dir:{out}", pretrained=True)'),
    "transformers": Target(
        _fits_transformers, _transformers, "transformers", 'transformers.{architecture}.from_pretrained("{out}")'
    ),
    "torchvision": Target(
        _fits_torchvision,
        _torchvision,
        "torchvision",
        'model.load_state_dict(safetensors.torch.load_file("{out}/model.safetensors"))',
        needs_head=True,
    ),
    "mlx": Target(_anything, _mlx, None, 'mlx_peft.create_model("{name}", weights="{out}")'),
    "peft": Target(_anything, _peft, "peft", PEFT, ("float32",), whole=False),
    "peft-transformers": _adapter_over(of_transformers, PEFT),
    "peft-transformers4": _adapter_over(of_transformers_4, f"{PEFT} under transformers 4"),
    "peft-torchvision": _adapter_over(of_torchvision, PEFT),
    "onnx": Runtime("onnx", 'onnxruntime.InferenceSession("{out}")'),
    "coreml": Runtime("coreml", 'MLModel(contentsOf: URL(fileURLWithPath: "{out}"))', ("float16",)),
}
"""The registry: a format is one entry here, and nothing else."""
