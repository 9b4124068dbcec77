"""A model card: what a model on the hub is, how it was trained, what it reached, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from convert.places import last_part
from mlx_peft.artifacts.share import Parcel
from mlx_peft.config import yaml_io
from mlx_peft.config.schema import Experiment
from mlx_peft.config.weights import SUFFIXES
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import markdown, printable, printable_lines
from mlx_peft.report import peaks
from mlx_peft.report.blocks import Columns, code, fenced
from mlx_peft.report.format import count, percent, seconds
from mlx_peft.vit.architecture import Preprocessing
from mlx_peft.vit.registry import Entry, find

NO_DATASET = ("folder", "none")
"""Data of these names are nobody else's."""

UNKNOWN = "No metrics are known: this was sent without the run that trained it."


OPTIONS = ("backend", "seed", "quantize", "qat", "tokens", "method", "train")
"""In these sections of an experiment nothing names a place or a person, but for ``PLACES``."""

PLACES = {"method": {"start"}}
"""These fields in them are paths, as pydantic's ``exclude``."""

PUBLISHED: dict[str, Any] = dict.fromkeys(OPTIONS, True) | {
    "model": {"name", "weights", "image_size", "args", "head", "drop_path", "head_dropout"},
    "data": {
        *("name", "variant", "columns", "batch_size", "split", "augment", "sampling", "class_weights", "unreadable"),
    },
}
"""This of an experiment is published, as pydantic's ``include``; anything else is not, whatever it will be."""


def card(parcel: Parcel, repository: str, commands: str) -> str:
    """The text of ``README.md``, with the hub's metadata at its head, and the commands that use what is sent.

    Raises UserError where ``result.json`` is not what a run writes.
    """
    try:
        return _written(parcel, repository, commands)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"result.json is not a finished run's, and no card can be made of it: {error!r}") from error


def _written(parcel: Parcel, repository: str, commands: str) -> str:
    parts = [
        f"---\n{front_matter(parcel, repository)}\n---",
        f"# {repository.partition('/')[2]}",
        _summary(parcel),
        _results(parcel),
        _use(parcel, repository, commands),
        _training(parcel),
        _base(parcel),
        _classes(parcel),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(parcel: Parcel, repository: str) -> str:
    """The card's metadata, in YAML, as the hub defines it."""
    from huggingface_hub import EvalResult, ModelCardData

    entry, result, task = _entry(parcel), parcel.result, parcel.task
    dataset = printable(str(result["dataset"])) if result else None
    split, metrics = _best(result)
    name = task.leading(metrics) if metrics else task.columns[0]
    evaluations = [
        EvalResult(
            task_type=task.hub_task, dataset_type=dataset, dataset_name=dataset, dataset_split=split,
            metric_type=task.hub_metrics[name], metric_name=f"{task.figures.get(name, name)} ({split})",
            metric_value=metrics[name],
        )
    ] if dataset and metrics else None  # fmt: skip
    base = _hub_id(parcel)
    data = ModelCardData(
        library_name=_library(parcel),
        pipeline_tag=task.hub_task,
        license=entry.license if entry and base else None,
        base_model=base,
        base_model_relation=None if base is None else "adapter" if parcel.kind == "adapter" else "finetune",
        datasets=[dataset] if dataset and dataset not in NO_DATASET else None,
        metrics=[task.hub_metrics[name]],
        tags=["vision-transformer", "mlx-peft", *([parcel.adapter.method.name] if parcel.adapter else [])],
        model_name=repository.partition("/")[2] if evaluations else None,
        eval_results=evaluations,
    )
    return data.to_yaml()


def _library(parcel: Parcel) -> str:
    """What opens the files by the repository's name."""
    if parcel.kind == "model":
        return "mlx-peft" if parcel.quantization or {"exact_architecture", "tokens"} & parcel.config.keys() else "timm"
    adapter = parcel.adapter
    unknown = adapter is not None and (adapter.quantize or adapter.qat or adapter.tokens)  # to PEFT
    return "peft" if adapter is not None and adapter.method.in_peft and not unknown else "mlx-peft"


def _name(parcel: Parcel) -> str:
    """timm's, of the base or the model."""
    if parcel.model is not None:
        return parcel.model.name
    return str(parcel.config.get("architecture") or "unknown")


def _entry(parcel: Parcel) -> Entry | None:
    tag = (parcel.config.get("pretrained_cfg") or {}).get("tag")
    name = f"{_name(parcel)}.{tag}" if tag and parcel.model is None else _name(parcel)
    try:
        return find(name)
    except UserError:
        return None


def _hub_id(parcel: Parcel) -> str | None:
    """The base on the hub, where it is known to be that."""
    entry = _entry(parcel)
    return entry.hub_id if entry and parcel.model is not None and parcel.model.weights == "timm" else None


def _best(result: Mapping[str, Any] | None) -> tuple[str, Mapping[str, float] | None]:
    """The metrics that count, and whose: the test split's, or the validation split's where there is no other."""
    metrics = (result or {}).get("metrics") or {}
    return next(((split, metrics[split]) for split in ("test", "val") if metrics.get(split)), ("test", None))


def _summary(parcel: Parcel) -> str:
    classes = parcel.task.outputs(parcel.num_classes)
    if parcel.adapter is None:
        return f"A Vision Transformer, {code(_name(parcel))}, for {classes}."
    method = parcel.adapter.method.name
    if parcel.kind == "model":
        return (
            f"{code(_name(parcel))}, fine-tuned to {classes} with the method `{method}`, which is merged into its "
            "weights."
        )
    origin = parcel.adapter.origin
    made = "" if origin is None else f" It was made of others, without training: {markdown(str(origin))}."
    return f"An adapter of the method `{method}` for {code(_name(parcel))}, with a head of {classes}.{made}"


def _results(parcel: Parcel) -> str:
    if (result := parcel.result) is None:
        return f"## Results\n\n{UNKNOWN}"
    names = parcel.task.columns
    figures = (f"{parcel.task.figures[name]} (%)" for name in names)
    headings = ["split", "images", *figures, "loss", "sha256 of the split"]
    rows = []
    for split, name in (("train", "training"), ("val", "validation"), ("test", "test")):
        facts, metrics = result["splits"].get(split), (result["metrics"].get(split) or {})
        if facts:
            loss = metrics.get("loss")
            rows.append([
                name, count(facts["size"]), *(percent(metrics.get(one)) for one in names),
                "–" if loss is None else f"{loss:.4f}", code(facts["sha256"]),
            ])  # fmt: skip
    selected = f"Epoch {result['selected']['epoch']} was selected by {markdown(str(result['selected']['by']))}"
    read = "; the test split was read once, after that" if result["splits"].get("test") else ""
    run = f"One run, seed {result['seed']}, data set {code(result['dataset'])}."
    merged = " All was measured before merging, which rounds each weight once more." if parcel.kind == "model" else ""
    return f"## Results\n\n{Columns(headings).table(rows)}\n\n{run} {selected}{read}.{merged}"


def _use(parcel: Parcel, repository: str, commands: str) -> str:
    text = f"## Use\n\nWith mlx-peft, on MLX or PyTorch:\n\n{fenced('', commands)}"
    if (snippet := _snippet(parcel, repository)) is not None:
        library = {"peft": "PEFT and timm", "timm": "timm"}[_library(parcel)]
        text += f"\n\nWith {library}:\n\n{fenced('python', snippet)}"
    return text


def _snippet(parcel: Parcel, repository: str) -> str | None:
    """What opens it in timm, or in PEFT on timm's model; None where they cannot, or not without more work."""
    if _library(parcel) == "timm":
        return f'import timm\n\nmodel = timm.create_model("hf-hub:{repository}", pretrained=True).eval()'
    model = parcel.model
    if _library(parcel) != "peft" or model is None or not (model.is_local or model.weights == "timm"):
        return None
    if model.is_local and (parcel.base_is_run or not model.weights.endswith(SUFFIXES)):
        return None  # timm opens a file of weights, and no folder
    if any(isinstance(value, str) or not key.isidentifier() for key, value in model.args.items()):
        return None  # in timm, what is a text here is a class
    options = {"img_size": model.image_size, **model.args}
    arguments = [f"num_classes={parcel.num_classes}", *(f"{k}={v!r}" for k, v in options.items() if v is not None)]
    if model.weights != "timm":
        arguments.append(f"pretrained_cfg_overlay={{'file': {model.weights!r}}}")
    return (
        "import peft\nimport timm\n\n"
        f"model = timm.create_model(\n    {json.dumps(model.name)},\n    pretrained=True,\n"
        + "".join(f"    {argument},\n" for argument in arguments)
        + ")\n"
        f'model = peft.PeftModel.from_pretrained(model, "{repository}").eval()'
    )


def _training(parcel: Parcel) -> str:
    if parcel.experiment is None and parcel.adapter is None:
        return ""
    text = "## Training\n\n"
    if parcel.result is not None:
        parameters, time, environment = (parcel.result[key] for key in ("parameters", "time", "environment"))
        facts = {
            "trained parameters": f"{count(parameters['trainable'])} of {count(parameters['total'])} "
            f"({parameters['trainable_percent']:.2f} %)",
            "of these without the head": count(parameters["adapter"]),
            "training": f"{seconds(time['train_seconds'])}, {time['images_per_second']:,.0f} images a second",
            "peak memory": peaks.words(parcel.result),
            "run": code(parcel.result["run_id"]),
            "versions": ", ".join(
                [
                    markdown(str(environment["framework"])),
                    *(markdown(f"{k} {environment[k]}") for k in ("mlx-peft", "numpy") if k in environment),
                ]
            ),
        }
        text += Columns(("", "")).table(facts.items()) + "\n\n"
    if parcel.experiment is not None:
        return text + fenced("yaml", printable_lines(yaml_io.write(published(parcel.experiment))))
    assert parcel.adapter is not None
    options = parcel.adapter.method.model_dump(mode="json", exclude=PLACES["method"])
    method = printable_lines(yaml_io.write({"method": options}))
    return f"{text}The method, as it is written in an experiment:\n\n{fenced('yaml', method)}"


def published(experiment: Experiment) -> dict[str, Any]:
    """What of an experiment is published, of local weights the last part of their name: it is one all the same."""
    found = experiment.model_dump(mode="json", include=PUBLISHED, exclude=PLACES)
    if experiment.model.is_local:
        found["model"]["weights"] = last_part(experiment.model.weights)
    return found


def _base(parcel: Parcel) -> str:
    entry, hub, adapter = _entry(parcel), _hub_id(parcel), parcel.adapter
    lines = []
    if parcel.model is not None:
        source = f"[`{hub}`](https://huggingface.co/{hub})" if hub else code(parcel.model.weights)
        run = " (a run, which is needed too)" if parcel.base_is_run and parcel.kind == "adapter" else ""
        lines.append(f"- Base: {code(_name(parcel))}, weights {source}{run}")
    if adapter is not None and adapter.base_sha256:
        lines.append(f"- SHA-256 over the base's tensors without the head: {code(adapter.base_sha256)}")
    if entry and entry.license and (hub or parcel.model is None):
        lines.append(
            f"- Licence of the weights that timm publishes under this name, as timm states it: {entry.license}"
        )
    preprocessing = _preprocessing(parcel)
    if preprocessing is not None:
        lines.append(
            f"- Images: RGB, {_image_size(parcel)} pixels square, mean {list(preprocessing.mean)}, std "
            f"{list(preprocessing.std)}, {preprocessing.interpolation}, crop {preprocessing.crop_pct} "
            f"({preprocessing.crop_mode})"
        )
    if parcel.quantization is not None:
        lines.append(f"- Quantised: {parcel.quantization.bits} bits, groups of {parcel.quantization.group_size}")
    return "## Base and images\n\n" + "\n".join(lines) if lines else ""


def _preprocessing(parcel: Parcel) -> Preprocessing | None:
    if parcel.adapter is not None:
        return parcel.adapter.preprocessing
    known = parcel.config["pretrained_cfg"]
    return Preprocessing(**{key: known[key] for key in Preprocessing.model_fields if key in known})


def _image_size(parcel: Parcel) -> int | str:
    if parcel.adapter is not None and parcel.adapter.architecture is not None:
        return parcel.adapter.architecture.img_size
    shape: list[int] | None = (parcel.config.get("pretrained_cfg") or {}).get("input_size")
    return shape[-1] if shape else "unknown"


def _classes(parcel: Parcel) -> str:
    if not parcel.classes:
        return ""
    texts = [json.dumps(name, ensure_ascii=printable(name) != name) for name in parcel.classes]
    names = ", ".join(texts).replace("`", "\\u0060")  # no fence ends inside
    return f"## Classes\n\nIn the order of the head's rows:\n\n{fenced('json', f'[{names}]')}"
