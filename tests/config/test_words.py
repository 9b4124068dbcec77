"""Words of others (peft's, timm's, transformers', the hub's) are answered with ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import AdaLoraConfig, IA3Config, LoraConfig, PveraConfig, RandLoraConfig, VeraConfig
from pydantic import ValidationError

from mlx_peft.config import problems
from mlx_peft.config.files import load
from mlx_peft.config.methods import IA3, AdaLoRA, LoRA, MethodConfig, PVeRA, RandLoRA, VeRA, called
from mlx_peft.config.schema import Data, Experiment
from mlx_peft.config.words import KEYS, OPTIONS, VALUES, paths
from mlx_peft.core.errors import UserError
from mlx_peft.vit import registry
from mlx_peft.vit.others import OTHERS

EXPERIMENT = "model: {name: deit_tiny_patch16_224}\nmethod: {name: lora}\ndata: {name: digits}\n"


@pytest.fixture
def answered(tmp_path: Path):
    """What is said of an override."""
    file = tmp_path / "a.yaml"
    file.write_text(EXPERIMENT)

    def of(*overrides: str) -> str:
        with pytest.raises(UserError) as caught:
            load(file, overrides, checks={"model.name": registry.find})
        return str(caught.value)

    return of


@pytest.mark.parametrize(
    ("written", "ours"),
    [
        ("lr=0.1", "train.optimizer.lr"),
        ("train.lr=0.1", "train.optimizer.lr"),
        ("method.lr=0.1", "train.optimizer.lr"),
        ("learning_rate=0.1", "train.optimizer.lr"),
        ("epochs=3", "train.epochs"),
        ("epoch=3", "train.epochs"),
        ("data.epochs=3", "train.epochs"),
        ("batch_size=8", "data.batch_size"),
        ("train.batch_size=8", "data.batch_size"),
        ("per_device_train_batch_size=8", "data.batch_size"),
        ("rank=8", "method.rank"),
        ("r=8", "method.rank"),
        ("method.r=8", "rank"),
        ("method.lora_alpha=8", "alpha"),
        ("method.lora_dropout=0.1", "dropout"),
        ("method.target_modules=[q]", "targets"),
        ("method.use_dora=true", "dora"),
        ("weight_decay=0.1", "train.optimizer.weight_decay"),
        ("warmup_ratio=0.1", "train.schedule.warmup"),
        ("img_size=64", "model.image_size"),
        ("num_workers=4", "data.threads"),
        ("method.targets=[query]", "q"),
        ("method.targets=[q, attention.output.dense]", "proj"),
        ("method.name=probe", "linear"),
        ("train.precision=bf16", "bfloat16"),
    ],
)
def test_a_word_of_others_is_answered_with_ours(answered, written: str, ours: str) -> None:
    assert f"did you mean '{ours}'?" in answered(written)


def test_a_key_that_is_in_several_sections_is_found_in_each(answered) -> None:
    assert "did you mean 'model.name' or 'method.name' or 'data.name'?" in answered("name=lora")


def test_a_key_of_another_method_is_not_looked_for_elsewhere(answered) -> None:
    assert "method.scale: unknown key; known: " in answered("method.scale=2")


def test_an_option_is_told_by_the_method_that_has_it(answered) -> None:
    assert "method.name: unknown 'dora': it is lora with method.dora=true" in answered("method.name=dora")


@pytest.mark.parametrize(
    ("written", "ours"),
    [
        ("facebook/dinov2-small", "vit_small_patch14_dinov2.lvd142m"),
        ("facebook/dinov2-with-registers-base", "vit_base_patch14_reg4_dinov2.lvd142m"),
        ("facebook/dino-vits16", "vit_small_patch16_224.dino"),
        ("facebook/deit-small-distilled-patch16-224", "deit_small_distilled_patch16_224"),
        ("facebook/vit-mae-large", "vit_large_patch16_224.mae"),
        ("timm/vit_small_patch16_224.augreg_in21k", "vit_small_patch16_224.augreg_in21k"),
        ("google/vit-base-patch16-224", "vit_base_patch16_224"),
        ("google/vit-base-patch16-224-in21k", "vit_base_patch16_224"),
        ("google/siglip-base-patch16-224", "vit_base_patch16_siglip_224.webli"),
        ("openai/clip-vit-large-patch14-336", "vit_large_patch14_clip_336.openai"),
        ("dinov2_vits14", "vit_small_patch14_dinov2.lvd142m"),
        ("dinov2_vitg14_reg", "vit_giant_patch14_reg4_dinov2.lvd142m"),
        ("dino_vitb8", "vit_base_patch8_224.dino"),
        ("vit_b_16", "vit_base_patch16_224"),
        ("ViT-B/16", "vit_base_patch16_224"),
    ],
)
def test_a_model_that_others_call_otherwise_is_told_by_timm_s_name(answered, written: str, ours: str) -> None:
    assert f"unknown model '{written}'; did you mean '{ours}'?" in answered(f"model.name={written}")


def test_where_a_repository_is_named_instead_is_said(answered) -> None:
    assert "can be named as the weights" in answered("model.name=somebody/some-model")
    assert "can be named" not in answered("model.name=dinov2_vits14")


def test_the_keys_of_a_part_are_those_of_the_part() -> None:
    """As a library has it, which makes a method without an experiment; and the data section alone."""

    def said(root: type, values: dict[str, object]) -> str:
        with pytest.raises(ValidationError) as caught:
            root.model_validate(values)
        return " ".join(problems.explain(caught.value, root).values())

    assert said(LoRA, {"r": 4, "lora_alpha": 8, "target_modules": ["q"]}) == (
        "unknown key; did you mean 'rank'? unknown key; did you mean 'alpha'? unknown key; did you mean 'targets'?"
    )
    assert said(AdaLoRA, {"r": 4}) == "unknown key; did you mean 'init_rank'?"
    assert "did you mean" not in said(Data, {"name": "digits", "lr": 1})


def test_ours_are_keys_and_values_that_there_are() -> None:
    keys = [f".{'.'.join(map(str, path))}" for path in paths(Experiment)]
    ours = {name for names in KEYS.values() for name in names}
    assert not [name for name in ours if not any(key.endswith(f".{name}") for key in keys)]
    schema = json.dumps(Experiment.model_json_schema())
    assert not [value for value in VALUES.values() if f'"{value}"' not in schema]
    assert all(called(method, {key: value}) for method, key, value in OPTIONS.values())


@pytest.mark.parametrize(
    ("theirs", "options", "ours"),
    [
        (LoraConfig, "r lora_alpha lora_dropout target_modules use_dora use_rslora layers_to_transform", LoRA),
        (AdaLoraConfig, "init_r target_r tinit tfinal deltaT lora_alpha lora_dropout target_modules", AdaLoRA),
        (VeraConfig, "r vera_dropout target_modules projection_prng_key d_initial", VeRA),
        (PveraConfig, "r pvera_dropout target_modules projection_prng_key d_initial", PVeRA),
        (RandLoraConfig, "r randlora_alpha randlora_dropout target_modules projection_prng_key", RandLoRA),
        (IA3Config, "target_modules feedforward_modules", IA3),
    ],
)
def test_what_decides_a_method_of_peft_has_a_word_here(theirs: type, options: str, ours: type[MethodConfig]) -> None:
    for option in options.split():
        assert option in theirs.__dataclass_fields__
        assert {*KEYS.get(option.lower(), ()), option} & {*ours.model_fields}, option


def test_every_model_of_others_is_one_that_there_is() -> None:
    """The table is made of sizes, of which not each has all models: such a row is passed over."""
    there = {name for name in OTHERS.values() if name.partition(".")[0] in registry.names()}
    assert len(there) > 20
    for name in there:
        assert registry.find(name).name.startswith(name)
