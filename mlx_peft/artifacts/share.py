"""A trained model on its way to others and back: what is sent, without this machine's paths, and what is accepted."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from convert import repository, tensor_file
from convert.adapters import peft
from convert.adapters.description import METADATA
from convert.adapters.peft import Adapter, read_adapter, shareable, write_adapter
from convert.base import load_base
from convert.files import describe_safetensors, listed, read_json, write_json
from convert.places import without_places
from convert.problem import task_of
from convert.timm import config as timm
from convert.timm.read import from_folder
from mlx_peft.artifacts.ahead import must_be_new
from mlx_peft.artifacts.merge import merge_run
from mlx_peft.artifacts.place import find_adapter, is_model
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Experiment, Model
from mlx_peft.config.weights import SUFFIXES
from mlx_peft.core.errors import UserError
from mlx_peft.core.sums import SUMS, write_with_sums
from mlx_peft.core.writing import disk_errors, staging
from mlx_peft.tasks.task import Task
from mlx_peft.training.run import RunFolder
from mlx_peft.training.whereabouts import adapter_in

IMAGES = {
    *("mean", "std", "interpolation", "crop_pct", "crop_mode", "test_crop_pct", "input_size", "test_input_size"),
    *("min_input_size", "fixed_input_size", "pool_size", "test_pool_size"),
}
PRETRAINED = IMAGES | {
    *("architecture", "tag", "custom_load", "num_classes", "label_offset", "label_names", "label_descriptions"),
    *("first_conv", "classifier", "license", "origin_url", "paper_name", "paper_ids", "hf_hub_id", "hf_hub_filename"),
}
MODEL = PRETRAINED | {
    *("num_features", "global_pool", "model_args", "pretrained_cfg", "problem_type", "quantization", "tokens"),
    "exact_architecture",
}
"""These fields of timm's ``config.json`` and of its ``pretrained_cfg`` are sent: they open the model. No other is."""

FACTS = ("format", METADATA)
"""These keys of a safetensors file's metadata are sent: the framework's, and ours."""

NAMES = ("label_names", "label_descriptions", "id2label", "label2id")
"""The strings in these fields of a configuration are names of classes."""


@dataclass(frozen=True)
class Parcel:
    """What is sent, and what is known of it.

    Attributes:
        kind: an adapter in PEFT's format, or a model in timm's.
        files: by name.
        adapter: what was trained; of a model's folder, None.
        model: what it is put on, or of what it is.
        classes: names; empty where they are unknown.
        num_classes: width of the head.
        quantization: of the files' tensors; None where they are plain.
        result: of the run; None where there is none.
        experiment: likewise.
        notes: what was left out, for a person.
    """

    kind: Literal["adapter", "model"]
    files: dict[str, Path]
    adapter: Adapter | None
    model: Model | None
    classes: tuple[str, ...]
    num_classes: int
    quantization: Quantization | None = None
    result: dict[str, Any] | None = None
    experiment: Experiment | None = None
    config: dict[str, Any] = field(default_factory=dict)
    """timm's configuration of the model; empty for an adapter."""
    notes: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """What the head answers."""
        return task_of(self.config, Path(timm.CONFIG)) if self.adapter is None else self.adapter.task

    @property
    def base_is_run(self) -> bool:
        """Whether the weights below the adapter are those of another run, as far as its result says so."""
        begun = (self.result or {}).get("began_with")
        return isinstance(begun, dict) and "weights" in begun


@contextmanager
def packed(
    path: Path,
    backend: Literal["mlx", "torch"] | None = None,
    *,
    name: str | None = None,
    merged: bool = False,
    weights: str | None = None,
) -> Iterator[Parcel]:
    """What a run, an adapter or a model's folder amounts to, as files that exist until the block is over.

    Args:
        path: as for ``load_run``, or a model's folder.
        backend: what merges.
        name: of one of several adapters.
        merged: send the run's model, merged, in place of its adapter.
        weights: where those of its base are now, for merging.

    Raises:
        UserError: where there is nothing whole to send, or the method cannot be merged.
    """
    if is_model(path):
        if merged:
            raise UserError(f"{path} is a whole model already: it needs no merging", arguments=("merged",))
        with _temporary() as folder:
            yield _with_sums(_without_facts(_without_places(_model(path), timm.CONFIG, folder), folder), folder)
        return
    place = find_adapter(path, name)
    found = read_adapter(place)
    adapter = shareable(found)
    run = RunFolder(place.parent)
    known = place == run.adapter and run.config.exists()
    experiment, result = (run.read_config(), run.read_result()) if known else (None, None)
    with _temporary() as folder:
        if merged:
            out = folder / "model"
            merge_run(path, out, backend, name=name, weights=weights)
            parcel = replace(_model(out), adapter=adapter, model=adapter.model)
        else:
            parcel = _adapter(place, adapter, adapter.source != found.source, folder / "adapter")
            parcel = _without_places(parcel, peft.CONFIG, folder)
        parcel = replace(_without_facts(parcel, folder), result=result, experiment=experiment)
        yield _with_sums(replace(parcel, notes=(*_needed(parcel), *parcel.notes)), folder)


def _temporary() -> AbstractContextManager[Path]:
    """A folder for what is sent; one that a killed process left, with a model in it, is removed."""
    return staging(Path(tempfile.gettempdir(), "parcel"))


def _model(folder: Path) -> Parcel:
    config = read_json(folder / timm.CONFIG)
    name, count = config.get("architecture"), config.get("num_classes")
    if not isinstance(name, str) or not isinstance(count, int):
        raise UserError(f"{folder / timm.CONFIG}: not a configuration of timm's: no architecture, or no num_classes")
    if not (folder / timm.WEIGHTS).is_file():
        raise UserError(f"{folder}: no {timm.WEIGHTS} in this folder, and nothing else is sent")
    found = from_folder(folder, None, str(folder))  # which also finds what is damaged
    count = len((found.tensors or {}).get("head.weight", ()))  # the configuration only claims a number
    names = config.get("label_names") or []
    left = sorted({entry.name for entry in folder.iterdir()} - {timm.CONFIG, timm.WEIGHTS, SUMS})
    return Parcel(
        "model",
        {file: folder / file for file in (timm.CONFIG, timm.WEIGHTS)},
        None,
        None,
        tuple(map(str, names)),
        count,
        found.quantization,
        config=config | {"architecture": name.removeprefix(timm.OURS)},
        notes=(f"left out: {listed(left)}",) if left else (),
    )


def _adapter(place: Path, adapter: Adapter, named_places: bool, new: Path) -> Parcel:
    """Of an adapter that we wrote, a copy that names no place on this machine."""
    if adapter.model is not None or (named_places and METADATA in describe_safetensors(place / peft.WEIGHTS)[1]):
        write_adapter(new, adapter)
        place = new
    files = {file: place / file for file in (peft.CONFIG, peft.WEIGHTS)}
    return Parcel(
        "adapter", files, adapter, adapter.model, adapter.classes, adapter.num_classes, adapter.quantize
    )  # fmt: skip


def _needed(parcel: Parcel) -> list[str]:
    """What whoever uses it needs too: a base that nobody else has."""
    model = parcel.model
    if parcel.kind == "model" or model is None or not model.is_local:
        return []
    what = "run" if parcel.base_is_run else "file" if model.weights.endswith(SUFFIXES) else "file or folder"
    return [f"its base is a {what} of yours, {model.weights}: who is to use it needs that {what} too"]


def _without_places(parcel: Parcel, file: str, folder: Path) -> Parcel:
    """With a copy of its configuration in ``folder`` where that names places on this machine: of them the last part."""
    config = read_json(parcel.files[file])
    kept, left = _listed_keys(config) if parcel.kind == "model" else (config, [])
    clean = _last_parts(kept)
    if clean == config:
        return parcel
    write_json(folder / file, clean)
    notes = [f"{file}: left out: {listed(left)}"] if left else []
    notes += [f"{file}: of the paths in it, only the last part is sent"] if clean != kept else []
    return replace(parcel, files=parcel.files | {file: folder / file}, notes=(*parcel.notes, *notes))


def _without_facts(parcel: Parcel, folder: Path) -> Parcel:
    """With a copy of its tensors in ``folder`` where another tool has written more beside them than is sent."""
    [weights] = (name for name in parcel.files if name.endswith(".safetensors"))
    file = tensor_file.open_file(parcel.files[weights])
    kept = {key: text for key, text in file.metadata.items() if key in FACTS}
    if kept == file.metadata:
        return parcel
    layout = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in file.entries.items()}
    with disk_errors(folder / weights):
        tensor_file.write(folder / weights, layout, file.array, kept)
    note = f"{weights}: left out of its metadata: {listed(sorted(file.metadata.keys() - kept.keys()))}"
    return replace(parcel, files=parcel.files | {weights: folder / weights}, notes=(*parcel.notes, note))


def _with_sums(parcel: Parcel, folder: Path) -> Parcel:
    """With the digests of those of its files that have none in them."""
    copies = folder / "sums"
    copies.mkdir()
    write_with_sums(copies, {name: path.read_bytes() for name, path in parcel.files.items() if path.suffix == ".json"})
    return replace(parcel, files=parcel.files | {SUMS: copies / SUMS})


def _listed_keys(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Of timm's configuration what may be sent, and the keys of the rest."""
    kept = {key: value for key, value in config.items() if key in MODEL}
    left = [key for key in config if key not in MODEL]
    if isinstance(inner := kept.get("pretrained_cfg"), dict):
        kept["pretrained_cfg"] = {key: value for key, value in inner.items() if key in PRETRAINED}
        left += [f"pretrained_cfg.{key}" for key in inner if key not in PRETRAINED]
    return kept, sorted(left)


def _last_parts(value: Any) -> Any:
    """JSON in which a path, absolute or to what is there, is its last part. Names of classes are no paths."""
    if isinstance(value, dict):
        return {key: one if key in NAMES else _last_parts(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_last_parts(one) for one in value]
    if not isinstance(value, str):
        return value
    return without_places(value)


def pull(name: str, out: Path, revision: str | None = None) -> str:
    """Fetches a repository with an adapter or a model into the folder ``out``; returns the commit.

    Raises UserError where ``out`` is there, the hub does not have it, or it is not what ``predict`` could open.
    """
    must_be_new(out)
    return repository.fetch(name, out, lambda folder: opened(folder, name), revision=revision)


def opened(folder: Path, name: str) -> None:
    """Raises UserError where a folder holds neither a whole adapter nor a whole model."""
    if adapter_in(folder) == folder:
        read_adapter(folder)
    elif is_model(folder):
        found = from_folder(folder, None, str(folder))
        classes = len((found.tensors or {}).get("head.weight", ()))  # config.json only claims a number
        load_base(Model(name=found.name, weights=str(folder), head="keep" if classes else None), classes, 0)
    else:
        raise UserError(f"{name} holds neither an adapter ({peft.CONFIG}) nor a model in timm's layout ({timm.CONFIG})")
