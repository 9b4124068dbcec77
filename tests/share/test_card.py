"""What stands in the card of a model on the hub."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from by_hand import by_hand
from comparing import relative
from huggingface_hub import ModelCard, ModelCardData
from safetensors.numpy import save_file

from convert.adapters.peft import read_adapter, write_adapter
from mlx_peft.artifacts.load import load_run
from mlx_peft.artifacts.merge import merge_run
from mlx_peft.artifacts.share import Parcel, packed
from mlx_peft.cli.push import commands
from mlx_peft.config.quantization import QAT
from mlx_peft.config.schema import Experiment, Model
from mlx_peft.core.errors import UserError
from mlx_peft.core.sums import SUMS
from mlx_peft.report import card as written
from mlx_peft.report.card import PUBLISHED, UNKNOWN
from mlx_peft.training.train import train

LOGITS = 1e-5  # relative, float32
NAME = "jane/digits"


def card(parcel, name):
    return written.card(parcel, name, commands(parcel, name))


def of(path: Path, **options: Any) -> str:
    with packed(path, "torch", **options) as parcel:
        return card(parcel, NAME)


def metadata(text: str) -> ModelCardData:
    """As the hub's own reader understands it."""
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    return data


def fenced(text: str, language: str) -> str:
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return block


def test_its_metadata_has_what_the_run_measured(run):
    result = json.loads((run / "result.json").read_text())
    data = metadata(of(run))
    (evaluation,) = data.eval_results
    assert evaluation.metric_value == result["metrics"]["test"]["top1"]
    assert (evaluation.dataset_type, evaluation.dataset_split, evaluation.metric_type) == ("digits", "test", "accuracy")
    assert (data.library_name, data.pipeline_tag) == ("peft", "image-classification")
    assert data.datasets == ["digits"]
    assert data.base_model is None  # random weights, which are nobody's model


def test_the_base_on_the_hub_and_its_licence_are_named_where_it_comes_from_there(run):
    model = Model(name="deit_tiny_patch16_224.fb_in1k")
    with packed(run, "torch") as parcel:
        data = metadata(card(replace(parcel, model=model), NAME))
        text = card(replace(parcel, model=Model(name=model.name, weights="base.safetensors")), NAME)
    assert (data.base_model, data.license) == ("timm/deit_tiny_patch16_224.fb_in1k", "apache-2.0")
    assert data.base_model_relation == "adapter"
    assert metadata(text).base_model is None is metadata(text).license


def test_everything_that_a_reader_needs_to_trust_it_is_in_its_text(run):
    result, text = json.loads((run / "result.json").read_text()), of(run)
    for split in ("train", "val", "test"):
        assert result["splits"][split]["sha256"] in text
        assert f"{result['splits'][split]['size']:,}" in text
    for number in ("trainable", "adapter", "total"):
        assert f"{result['parameters'][number]:,}" in text
    for split in ("val", "test"):
        assert f"{100 * result['metrics'][split]['top1']:.2f}" in text
        assert f"{result['metrics'][split]['loss']:.4f}" in text
    assert f"seed {result['seed']}" in text
    assert result["run_id"] in text
    assert result["environment"]["framework"] in text
    assert read_adapter(run / "adapter").base_sha256 in text


def test_its_experiment_is_the_runs_but_for_paths(run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    config = (moved / "config.yaml").read_text()
    by_hand(moved / "config.yaml", config.replace("root: data", "root: /home/jane/data"))
    assert (moved / "config.yaml").read_text() != config
    text = of(moved)
    assert "/home/jane" not in text
    assert Experiment.model_validate(yaml.safe_load(fenced(text, "yaml"))) == Experiment.model_validate(
        {key: value for key, value in yaml.safe_load(config).items() if key != "found"}
    )


def test_an_adapter_without_its_run_says_that_it_has_no_metrics(run, tmp_path):
    shutil.copytree(run / "adapter", tmp_path / "alone")
    text = of(tmp_path / "alone")
    assert UNKNOWN not in of(run)
    assert UNKNOWN in text
    assert metadata(text).eval_results is None
    assert yaml.safe_load(fenced(text, "yaml"))["method"]["rank"] == 4


def test_a_merged_run_is_timms_and_keeps_the_runs_metrics(run, tmp_path):
    text = of(run, merged=True)
    assert metadata(text).library_name == "timm"
    assert metadata(text).eval_results[0].metric_value == metadata(of(run)).eval_results[0].metric_value
    assert f'timm.create_model("hf-hub:{NAME}"' in fenced(text, "python")
    merge_run(run, tmp_path / "merged", "torch")
    assert "before merging" in text
    assert UNKNOWN in of(tmp_path / "merged")


def test_a_method_that_peft_does_not_know_has_no_snippet_for_it(experiment, tmp_path):
    vpt = experiment.model_dump() | {"method": {"name": "vpt", "tokens": 2}}
    train(Experiment.model_validate(vpt), tmp_path / "vpt")
    text = of(tmp_path / "vpt")
    assert metadata(text).library_name == "mlx-peft"
    assert "import peft" not in text


def test_neither_has_one_that_was_trained_through_codes_which_peft_would_leave_out(run):
    with packed(run, "torch") as parcel:
        rounded = replace(parcel.adapter, qat=QAT(bits=4))
        text = card(replace(parcel, adapter=rounded), NAME)
        assert metadata(card(parcel, NAME)).library_name == "peft"
    assert metadata(text).library_name == "mlx-peft"
    assert "import peft" not in text


@pytest.mark.parametrize("name", ["```\n# Injected\n", "a | b\n---\nlicense: x", "Kätzchen", '"], "'])
def test_no_class_name_gets_out_of_its_block(run, name):
    with packed(run, "torch") as parcel:
        classes = (name, *parcel.classes[1:])
        text = card(replace(parcel, classes=classes), NAME)
    assert tuple(json.loads(fenced(text, "json"))) == classes
    assert not re.search(r"^# Injected", text, re.MULTILINE)
    assert text.count("\n---\n") == 1


HELD_BACK = {"data.root", "data.threads", "data.workers", "data.download", "data.cache", "device", "track"}
"""Of an experiment: where things lie on a machine, and what has no part in the result."""


def test_of_every_field_of_an_experiment_it_is_decided_whether_it_is_published():
    decided = set(HELD_BACK)
    for section, included in PUBLISHED.items():
        decided |= {section} if included is True else {f"{section}.{key}" for key in included}
    fields = set()
    for name, field in Experiment.model_fields.items():
        inner = field.annotation.model_fields if name in ("model", "data") else None
        fields |= {f"{name}.{key}" for key in inner} if inner else {name}
    assert fields == decided


def test_no_path_of_the_experiment_is_published(run):
    private = {"folder": Path("/home/jane/cache"), "gigabytes": 1.0, "side": None}
    with packed(run, "torch") as parcel:
        data = parcel.experiment.data.model_copy(update={"root": Path("/home/jane/data"), "cache": private})
        model = parcel.experiment.model.model_copy(update={"weights": "/home/jane/base.safetensors"})
        experiment = parcel.experiment.model_copy(update={"data": data, "model": model})
        text = card(replace(parcel, experiment=experiment), NAME)
    assert "jane/" not in text.replace(NAME, "")
    assert yaml.safe_load(fenced(text, "yaml"))["model"]["weights"] == "base.safetensors"


NASTY = "a` | \x1b]0;b\x07 \u202ec\n---\n# Injected\n```\n# Injected\n<script>"


def test_no_text_of_a_run_gets_out_of_its_place(run):
    with packed(run, "torch") as parcel:
        result = json.loads(json.dumps(parcel.result))
        result |= {"dataset": NASTY, "run_id": NASTY, "selected": {"epoch": 1, "by": NASTY}}
        result["environment"] |= {"framework": NASTY, "numpy": NASTY}
        result["splits"]["test"]["sha256"] = NASTY
        model = parcel.model.model_copy(update={"name": NASTY, "weights": NASTY})
        method = parcel.adapter.method.model_copy(update={"rank_pattern": {NASTY: 4}})
        experiment = parcel.experiment.model_copy(update={"model": model, "method": method})
        changes = {"result": result, "model": model, "classes": (NASTY, *parcel.classes[1:])}
        for known in (experiment, None):
            adapter = replace(parcel.adapter, method=method, base_sha256=NASTY)
            text = card(replace(parcel, **changes, adapter=adapter, experiment=known), NAME)
            assert not re.search(r"^# Injected", text, re.MULTILINE)
            assert text.count("\n---\n") == 1
            assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", text)
            assert ModelCard(text).data.library_name
            assert json.loads(fenced(text, "json"))[0] == NASTY
            head = [line for line in text.splitlines() if line.startswith("| ")]
            columns = [len(re.findall(r"(?<!\\)\|", line)) for line in head]
            assert set(columns) == {columns[0], 3}  # the metrics' table, and that of two columns


def test_a_result_that_is_no_runs_is_refused(run):
    with packed(run, "torch") as parcel:
        for result in ({}, parcel.result | {"splits": 3}, parcel.result | {"metrics": {"test": {"top1": "x"}}}):
            with pytest.raises(UserError, match=r"result\.json is not a finished run's"):
                card(replace(parcel, result=result), NAME)


def test_peft_and_timm_run_its_snippet_to_the_same_logits(run, experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the base's file is, as whoever runs the snippet has it
    save_file(dict(load_run(run).base.tensors), "base.safetensors")
    model = experiment.model.model_copy(update={"weights": "base.safetensors"})
    train(experiment.model_copy(update={"model": model}), tmp_path / "run")
    snippet = fenced(of(tmp_path / "run"), "python").replace(NAME, str(tmp_path / "run" / "adapter"))
    names: dict[str, Any] = {}
    exec(snippet, names)
    loaded = load_run(tmp_path / "run")
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    mean, std = torch.tensor(loaded.preprocessing.mean), torch.tensor(loaded.preprocessing.std)
    with torch.no_grad():
        logits = names["model"](((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)).numpy()
    expected = loaded.model.logits(images)
    assert relative(logits, expected) <= LOGITS


def test_over_a_run_there_is_no_snippet_and_the_run_is_named_as_needed(run, experiment, tmp_path):
    """Merged, its weights are in no file that timm could open."""
    model = experiment.model.model_copy(update={"weights": str(run)})
    train(experiment.model_copy(update={"model": model}), tmp_path / "second")
    with packed(tmp_path / "second", "torch") as parcel:
        text = card(parcel, NAME)
        assert parcel.notes[0] == "its base is a run of yours, mine: who is to use it needs that run too"
    assert "import peft" not in text and "(a run, which is needed too)" in text
    with packed(tmp_path / "second" / "adapter", "torch") as parcel:
        assert "import peft" not in card(parcel, NAME)


def test_what_is_sent_of_an_adapter_that_peft_wrote_is_what_peft_wrote(run, tmp_path):
    adapter = read_adapter(run / "adapter")
    write_adapter(tmp_path / "foreign", replace(adapter, model=None, classes=()))
    with packed(tmp_path / "foreign", "torch") as parcel:
        assert isinstance(parcel, Parcel)
        assert {path.parent for name, path in parcel.files.items() if name != SUMS} == {tmp_path / "foreign"}
        assert "--model NAME" in commands(parcel, NAME)
