"""Adapters on disk, in Hugging Face PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``.

What PEFT has no words for (class names, the model, the method as it was written) lies as one JSON text in the metadata
of the safetensors file, which PEFT does not look at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from convert.adapters import codes
from convert.adapters.block_layers import must_be_tables
from convert.adapters.description import DAMAGE, METADATA, Description, described
from convert.adapters.foreign import translated
from convert.adapters.format import Format
from convert.adapters.formats import FORMATS
from convert.files import read_json, read_safetensors, write_json, write_safetensors
from convert.fit import class_names
from convert.places import last_part, without_places
from convert.problem import KEY, written
from mlx_peft.config.combination import Origin
from mlx_peft.config.methods import Method
from mlx_peft.config.quantization import QAT, Quantization, is_scale
from mlx_peft.config.schema import Model
from mlx_peft.config.tokens import ReducerConfig, is_router
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError, shown
from mlx_peft.core.problems import of_value
from mlx_peft.core.sums import SUMS
from mlx_peft.core.text import counted, named, printable
from mlx_peft.core.writing import new_folder
from mlx_peft.tasks.registry import TASKS, USUAL
from mlx_peft.tasks.task import Task
from mlx_peft.vit.architecture import Architecture, Preprocessing
from mlx_peft.vit.parameters import HEADS
from mlx_peft.vit.registry import find

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
ROOT = "base_model."
PREFIX = f"{ROOT}model."
"""The names of the model's tensors start with it; PEFT keeps others beside the model, under ``base_model``."""


@dataclass(frozen=True, repr=False)
class Adapter:
    """What was trained, with all that is needed to use it again.

    Attributes:
        tensors: by the names that a model has for them; the head is always among them.
        classes: names in the order of the head's rows; empty where the adapter does not say.
        model: as in the experiment; None for an adapter that PEFT wrote, which does not know.
        architecture: None where it is unknown; likewise ``preprocessing``.
        base_sha256: of the base it was trained on; None where it is unknown.
        source: where that base's weights came from.
        quantize: how that base was quantised; None where it was not, or it is unknown.
        qat: the codes that it was trained through; None where there were none.
        tokens: how the model had fewer of them; None where it had all.
        task: what the head answers.
        over: the model class of another library whose layers' names its file has; empty: it has timm's.
        fields: of the architecture, that its head asks for beside.
        origin: what it was combined from; None where it was trained.
    """

    method: Method
    tensors: Tensors
    classes: tuple[str, ...]
    model: Model | None
    architecture: Architecture | None
    preprocessing: Preprocessing | None
    base_sha256: str | None
    source: str
    quantize: Quantization | None = None
    qat: QAT | None = None
    task: Task = USUAL
    over: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin | None = None
    tokens: ReducerConfig | None = None

    def __repr__(self) -> str:
        """A line: its tensors would be hundreds."""
        model = self.source if self.model is None else self.model.name
        classes = named(self.num_classes, self.classes)
        return f"Adapter({self.method!r} for {model}, {classes}, {len(self.tensors)} tensors)"

    @property
    def num_classes(self) -> int:
        """Width of the head that was trained; of one that is missing, what the class names say."""
        return len(self.tensors.get("head.weight", self.classes))


def write_adapter(folder: Path, adapter: Adapter) -> list[str]:
    """Writes an adapter; the same adapter gives the same bytes. An earlier adapter in the folder is replaced.

    No place on this machine is written: of local weights, the file's own name and the digest over what is in them.

    Returns:
        Notes for the user: that PEFT cannot read the method, where it cannot; otherwise what it passes over in silence.

    Raises:
        UserError: where the folder holds other files, or cannot be written.
    """
    layout, adapter = FORMATS[type(adapter.method)], shareable(adapter)
    own, others = _apart(adapter.tensors)
    config, tensors = layout.pack(adapter.method, own)
    tensors |= others
    config |= common(adapter, layout) | {
        "modules_to_save": [head for head in HEADS if f"{head}.weight" in tensors],
    }
    shared = {name: getattr(adapter, name) for name in Description.model_fields.keys() - {KEY}}
    description = Description(problem_type=adapter.task.name, **shared)
    usual = set() if written(adapter.task) else {KEY}  # earlier versions know no other, and not the word
    usual |= {"origin"} if adapter.origin is None else set()
    usual |= {"tokens"} if adapter.tokens is None else set()
    with new_folder(folder, replaceable={CONFIG, WEIGHTS, SUMS}) as new:
        write_json(new / CONFIG, dict(sorted(config.items())))
        write_safetensors(
            new / WEIGHTS,
            {name if name.startswith(ROOT) else f"{PREFIX}{name}": tensor for name, tensor in tensors.items()},
            {METADATA: description.model_dump_json(exclude=usual)},
        )
    if layout.from_peft is None:
        return [f"{folder}: Hugging Face PEFT has no method {adapter.method.name!r} and cannot read this adapter"]
    notes = layout.notes(adapter.method, own)
    if _is_passed_by(adapter):
        notes.append(
            "timm's EvaAttention multiplies with qkv.weight itself where q_bias and v_bias stand beside it, past what "
            "Hugging Face PEFT puts around qkv: there the adapter acts once it is merged (merge_and_unload), not before"
        )
    if adapter.qat is not None:
        notes.append(
            f"it was trained through {adapter.qat.bits}-bit codes, of which Hugging Face PEFT knows nothing: there it "
            "meets the float base, and gives other logits"
        )
    if adapter.tokens is not None:
        notes.append(
            f"it was trained with fewer tokens ({adapter.tokens}), of which Hugging Face PEFT knows nothing: there it "
            "meets all of them, and gives other logits"
        )
    return [f"{folder}: {note}" for note in notes]


def _is_passed_by(adapter: Adapter) -> bool:
    """Whether timm calls a layer that the adapter has tensors for by its weight alone."""
    a = adapter.architecture
    apart = a is not None and a.qkv == "biases_apart" and a.qkv_bias
    return apart and any(".attn.qkv." in name for name in adapter.tensors)


def common(adapter: Adapter, layout: Format) -> dict[str, Any]:
    """What the configurations of all methods say."""
    hub = adapter.model is not None and adapter.model.weights == "timm"
    return {
        "peft_type": layout.peft_type,
        "task_type": None,
        "base_model_name_or_path": adapter.source if hub or adapter.model is None else adapter.model.name,
        "inference_mode": True,
    }


def shareable(adapter: Adapter) -> Adapter:
    """The adapter as it is written: of a place on this machine, only the last part of its name is left, as text.

    Which other adapter its training began with is the run's to say: its tensors are others by now.
    """
    model, source = adapter.model, printable(without_places(adapter.source))
    if model is not None and model.is_local:
        model = model.model_copy(update={"weights": printable(last_part(model.weights))})
        source = model.weights
    method = adapter.method.model_copy(update={"start": None})
    return replace(adapter, method=method, model=model, source=source)


def _apart(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """The method's tensors, and what no method knows: the trained scales of rounded weights, and routers."""
    others = {name: tensor for name, tensor in tensors.items() if is_scale(name) or is_router(name)}
    return {name: tensor for name, tensor in tensors.items() if name not in others}, others


def read_adapter(folder: Path) -> Adapter:
    """Reads an adapter that ``write_adapter`` or PEFT wrote.

    Raises:
        UserError: where the folder holds no whole adapter, or one of a method that is not supported.
    """
    config = read_json(folder / CONFIG)
    path = folder / WEIGHTS
    if not path.exists() and (folder / "adapter_model.bin").exists():
        raise UserError(f"{folder}: adapter_model.bin is a pickle; save the adapter again as {WEIGHTS}")
    stored, metadata = read_safetensors(path, words=True)
    codes.must_be_words(stored, path)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items()}
    if METADATA not in metadata:
        return _from_peft(config, tensors, folder)
    description = described(metadata, path)
    try:
        own, others = _apart(tensors)
        tensors = FORMATS[type(description.method)].unpack(description.method, own) | others
    except DAMAGE as error:
        raise UserError(f"{path}: not an adapter of the method its metadata names: {of_value(error)}") from error
    shared = {name: getattr(description, name) for name in Description.model_fields.keys() - {KEY}}
    return _with_sound_head(Adapter(tensors=tensors, task=TASKS[description.problem_type], **shared), path)


def _with_sound_head(adapter: Adapter, path: Path) -> Adapter:
    """The adapter itself. Raises UserError where its head is no matrix and vector, or not of the classes it names."""
    for head in HEADS:
        weight, bias = (adapter.tensors.get(f"{head}.{kind}") for kind in ("weight", "bias"))
        if weight is not None and (weight.ndim != 2 or 0 in weight.shape):
            raise UserError(f"{path}: {head}.weight should have the shape (classes, width), not {weight.shape}")
        if bias is not None and (weight is None or bias.shape != weight.shape[:1]):
            rows = "there is no head.weight" if weight is None else f"the head has {counted(len(weight), 'row')}"
            raise UserError(f"{path}: {head}.bias has the shape {bias.shape}, and {rows}")
    if "head.weight" in adapter.tensors:
        class_names(adapter.classes, adapter.tensors, f"{path}: its classes")
    return adapter


def _from_peft(config: dict[str, Any], tensors: Tensors, folder: Path) -> Adapter:
    readers = {layout.peft_type: layout.from_peft for layout in FORMATS.values() if layout.from_peft}
    reader = readers.get(str(config.get("peft_type")))
    if reader is None:
        known = ", ".join(sorted(readers))
        raise UserError(
            f"{folder / CONFIG}: peft_type {shown(config.get('peft_type'))} is not supported (known: {known})"
        )
    must_be_tables(config, folder / CONFIG)
    try:
        found = translated(config, tensors, folder)
        method, tensors = reader(found.config, found.tensors, folder)
    except DAMAGE as error:
        raise UserError(
            f"{folder}: its {config['peft_type']} adapter is not understood: {of_value(error):.300}"
        ) from error
    source = str(config.get("base_model_name_or_path") or "unknown")
    try:
        entry = find(source.removeprefix("timm/"))
    except UserError:
        entry = None
    adapter = Adapter(
        method=method,
        tensors=tensors,
        classes=(),
        model=None,
        architecture=None if entry is None else entry.architecture,
        preprocessing=None if entry is None else entry.preprocessing,
        base_sha256=None,
        source=source,
        over="" if found.naming is None else found.naming.title,
        fields=found.fields,
    )
    return _with_sound_head(adapter, folder / WEIGHTS)
