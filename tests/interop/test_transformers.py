"""transformers' own classes against the model that their files become, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from by_hand import by_hand
from comparing import LOGITS, relative
from foreign_models import SIZE, SMALL, logits, on_disk, pixels, prepared, shaken, with_identity_head

from convert.base import Base, load_base
from convert.files import write_json, write_safetensors
from convert.layouts import transformers as layout
from convert.layouts.layout import Asked
from convert.layouts.transformers_config import DEFAULTS
from convert.open import open_path
from mlx_peft.artifacts.source import open_source
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture, Preprocessing
from torch_ref.tools import foreign

WIDTHS = ("embed_dim", "depth", "num_heads", "patch_size", "mlp_ratio")
META = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
CLASSES = {"id2label": {0: "cat", 1: "dog", 2: "emu"}}
TEXT = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 48, "vocab_size": 50}


def whole(kind: str, **vision: Any) -> transformers.PreTrainedConfig:
    config = {"clip": transformers.CLIPConfig, "siglip": transformers.SiglipConfig}[kind]
    return config(vision_config=SMALL | vision, text_config=TEXT, projection_dim=3, **CLASSES)


MODELS: dict[str, tuple[str, Any]] = {
    "vit": ("ViTForImageClassification", lambda: transformers.ViTConfig(**SMALL, **CLASSES)),
    "vit with other options": (
        "ViTForImageClassification",
        lambda: transformers.ViTConfig(
            **SMALL | {"num_attention_heads": 2}, **CLASSES, qkv_bias=False, layer_norm_eps=1e-3,
            hidden_act="gelu_pytorch_tanh",
        ),
    ),
    "vit without a head": ("ViTModel", lambda: transformers.ViTConfig(**SMALL)),
    "deit": ("DeiTForImageClassification", lambda: transformers.DeiTConfig(**SMALL, **CLASSES)),
    "deit with teacher": (
        "DeiTForImageClassificationWithTeacher",
        lambda: transformers.DeiTConfig(**SMALL, **CLASSES, layer_norm_eps=1e-6),
    ),
    "dinov2": ("Dinov2ForImageClassification", lambda: transformers.Dinov2Config(**META, **CLASSES, mlp_ratio=2)),
    "dinov2 with swiglu": (
        "Dinov2ForImageClassification",
        lambda: transformers.Dinov2Config(**META, **CLASSES, use_swiglu_ffn=True, qkv_bias=False),
    ),
    "dinov2 without a head": ("Dinov2Model", lambda: transformers.Dinov2Config(**META)),
    "dinov2 with registers": (
        "Dinov2WithRegistersForImageClassification",
        lambda: transformers.Dinov2WithRegistersConfig(**META, **CLASSES, num_register_tokens=3),
    ),
    "dinov2 with registers, without a head": (
        "Dinov2WithRegistersModel", lambda: transformers.Dinov2WithRegistersConfig(**META, use_swiglu_ffn=True),
    ),
    "dinov3": ("DINOv3ViTModel", lambda: transformers.DINOv3ViTConfig(**SMALL, num_register_tokens=4)),
    "dinov3 with swiglu and a bias of k, without registers": (
        "DINOv3ViTModel",
        lambda: transformers.DINOv3ViTConfig(**SMALL, use_gated_mlp=True, key_bias=True, hidden_act="silu"),
    ),
    "dinov3 without biases": (
        "DINOv3ViTModel",
        lambda: transformers.DINOv3ViTConfig(
            **SMALL, query_bias=False, value_bias=False, proj_bias=False, mlp_bias=False, rope_theta=50.0,
            num_register_tokens=1,
        ),
    ),
    "beit": (
        "BeitForImageClassification",
        lambda: transformers.BeitConfig(**SMALL, **CLASSES, use_relative_position_bias=True),
    ),
    "beit with one table, learnt positions and the class token": (
        "BeitForImageClassification",
        lambda: transformers.BeitConfig(
            **SMALL, **CLASSES, use_shared_relative_position_bias=True, use_absolute_position_embeddings=True,
            use_mean_pooling=False, layer_scale_init_value=0.0, use_mask_token=True,
        ),
    ),
    "beit without a head": ("BeitModel", lambda: transformers.BeitConfig(**SMALL, use_relative_position_bias=True)),
    "clip's tower": ("CLIPVisionModel", lambda: transformers.CLIPVisionConfig(**SMALL)),
    "clip's tower with its projection": (
        "CLIPVisionModelWithProjection",
        lambda: transformers.CLIPVisionConfig(**SMALL, projection_dim=3, hidden_act="gelu"),
    ),
    "clip that classifies": ("CLIPForImageClassification", lambda: whole("clip")),
    "siglip's tower": ("SiglipVisionModel", lambda: transformers.SiglipVisionConfig(**SMALL)),
    "siglip that classifies": ("SiglipForImageClassification", lambda: whole("siglip")),
}  # fmt: skip

OF_TEXTS = {"clip": ("CLIPModel", lambda: whole("clip")), "siglip": ("SiglipModel", lambda: whole("siglip"))}
"""Models of images and texts, of which the images' tower is read: they do not come back whole."""

OF_BEIT = {
    "data2vec": (
        "Data2VecVisionForImageClassification",
        lambda: transformers.Data2VecVisionConfig(**SMALL, **CLASSES, use_relative_position_bias=True),
    ),
}  # fmt: skip
"""A class that is BEiT's under another name, as which it comes back."""

PRETRAINING = ("pooler.dense", "mask_token", "text_model.", "text_projection", "logit_scale", "logit_bias")
"""Tensors that a classifier has no use for, and that do not come back."""

UNUSED = {"CLIPForImageClassification": "post_layernorm", "SiglipForImageClassification": "vision_model.head."}


def saved(case: str, folder: Path) -> tuple[torch.nn.Module, Base]:
    """A model of transformers in a folder, and what we make of it."""
    name, config = (MODELS | OF_TEXTS | OF_BEIT)[case]
    torch.manual_seed(0)
    model = shaken(getattr(transformers, name)(config()))
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model, loaded(folder)


def loaded(folder: Path) -> Base:
    checkpoint = open_path(folder, Asked())
    assert checkpoint.layout == "transformers" and checkpoint.tensors is not None
    classes = len(checkpoint.tensors.get("head.weight", ()))
    base = load_base(Model(name=checkpoint.name, weights=str(folder), args=architecture(checkpoint)), None, seed=0)
    if not classes:
        tensors = {key: tensor for key, tensor in base.tensors.items() if not key.startswith("head")}
        return Base(**{**vars(base), "tensors": tensors})
    return base


def architecture(checkpoint: Any) -> dict[str, Any]:
    """The names are of large models: what the small ones differ in is said."""
    return {key: value for key, value in checkpoint.architecture.model_dump().items() if key != "img_size"}


def features(model: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
    """Logits, or what a head would read."""
    with torch.no_grad():
        if hasattr(model, "get_image_features"):
            return model.get_image_features(pixel_values=images).pooler_output.numpy()
        result = model(pixel_values=images)
    for key in ("logits", "image_embeds"):
        if key in result:
            return result[key].numpy()
    if type(model).__name__ == "BeitModel":
        return result.pooler_output.numpy()
    if "Clip" in type(model).__name__ or "CLIP" in type(model).__name__ or "Siglip" in type(model).__name__:
        return result.pooler_output.numpy()
    return result.last_hidden_state[:, 0].numpy()


@pytest.mark.parametrize("case", [*MODELS, *OF_TEXTS, *OF_BEIT])
def test_both_backends_give_the_logits_of_transformers_own_class(case: str, tmp_path: Path) -> None:
    model, base = saved(case, tmp_path)
    images = pixels()
    expected = features(model, prepared(images, base))
    whole = base if "head.weight" in base.tensors else with_identity_head(base)
    for backend in ("torch", "mlx"):
        assert relative(logits(whole, backend, images), expected) <= LOGITS


@pytest.mark.parametrize("case", OF_TEXTS)
def test_the_proof_of_a_model_of_images_and_texts_has_its_features_of_images(case: str, tmp_path: Path) -> None:
    model, base = saved(case, tmp_path)
    images = pixels()
    found = foreign.logits("transformers", tmp_path, base, images)
    np.testing.assert_array_equal(found, features(model, prepared(images, base)))


@pytest.mark.parametrize("case", MODELS)
def test_the_way_back_gives_the_same_tensors_bit_for_bit(case: str, tmp_path: Path) -> None:
    model, base = saved(case, tmp_path / "theirs")
    classes = ["cat", "dog", "emu"] if "head.weight" in base.tensors else []
    config, prepare, tensors = layout.pack(base.architecture, base.preprocessing, base.tensors, classes)
    (tmp_path / "back").mkdir()
    for name, value in {"config.json": config, "preprocessor_config.json": prepare}.items():
        write_json(tmp_path / "back" / name, value)
    write_safetensors(tmp_path / "back" / "model.safetensors", tensors)

    before, after = on_disk(tmp_path / "theirs"), on_disk(tmp_path / "back")
    folded = {key for key in before if "registers" in case and key.endswith(("cls_token", "position_embeddings"))}
    unused = UNUSED.get(MODELS[case][0], "-")
    for key, tensor in before.items():
        if key not in folded and unused not in key and not any(part in key for part in PRETRAINING):
            np.testing.assert_array_equal(after[key], tensor, err_msg=key)
    assert {key for key in after.keys() - before.keys() if "mask_token" not in key} == set()

    again = getattr(transformers, MODELS[case][0]).from_pretrained(tmp_path / "back").eval()
    images = prepared(pixels(), base)
    if folded:  # the class token has its position in it, as timm keeps it: the sum is the same
        np.testing.assert_array_equal(features(again, images), features(model, images))
    else:
        assert relative(features(again, images), features(model, images)) == 0
    assert again.config.id2label == (model.config.id2label if classes else again.config.id2label)
    rewritten = loaded(tmp_path / "back")
    assert rewritten.architecture == base.architecture
    for key, tensor in base.tensors.items():
        np.testing.assert_array_equal(rewritten.tensors[key], tensor, err_msg=key)


IN_MEMORY = (
    *("vit", "deit with teacher", "dinov2 with swiglu", "dinov2 with registers", "dinov3", "beit"),
    "beit with one table, learnt positions and the class token",
)


@pytest.mark.parametrize("case", IN_MEMORY)
def test_the_names_in_memory_are_those_on_disk(case: str, tmp_path: Path) -> None:
    model, base = saved(case, tmp_path)
    assert model.state_dict().keys() != on_disk(tmp_path).keys()
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    again = loaded(tmp_path)
    for key, tensor in base.tensors.items():
        np.testing.assert_array_equal(again.tensors[key], tensor, err_msg=key)


def test_what_a_configuration_leaves_out_means_what_it_does_there() -> None:
    for kind, ours in DEFAULTS.items():
        theirs = transformers.AutoConfig.for_model(kind).to_dict()
        assert {key: theirs[key] for key in ours} == ours


def test_a_repository_of_the_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, base = saved("vit", tmp_path / "cache")
    asked = []

    def download(repository: str, filename: str) -> Path:
        asked.append((repository, filename))
        return tmp_path / "cache" / filename

    monkeypatch.setattr("convert.named.download", download)
    found = open_source("google/vit-tiny")
    files = ("model.safetensors", "config.json", "preprocessor_config.json")
    assert asked == [("google/vit-tiny", file) for file in files]
    assert (found.kind, found.classes) == ("transformers", ("cat", "dog", "emu"))
    np.testing.assert_array_equal(found.base.tensors["norm.weight"], base.tensors["norm.weight"])
    images = pixels()
    theirs = found.references["transformers"](images)  # which opens what was fetched, whatever the name it has
    assert relative(logits(found.base, "torch", images), theirs) <= LOGITS


def test_an_experiment_starts_from_a_folder_of_transformers(tmp_path: Path) -> None:
    _, base = saved("dinov2", tmp_path)
    args = {key: value for key, value in base.architecture.model_dump().items() if key in WIDTHS}
    again = load_base(
        Model(name="vit_small_patch14_dinov2", weights=str(tmp_path), args=args, image_size=48), 4, seed=0
    )
    assert again.architecture.global_pool == "token_avg" and again.tensors["head.weight"].shape == (4, 48)
    assert "pos_embed: 4 x 4 resized to 6 x 6" in again.notes
    np.testing.assert_array_equal(again.tensors["norm.weight"], base.tensors["norm.weight"])


def test_a_narrower_model_has_its_names_mlp_ratio_still(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**SMALL | {"intermediate_size": 96}, **CLASSES)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path)
    args = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    base = load_base(Model(name="vit_tiny_patch16_224", weights=str(tmp_path), args=args), 3, seed=0)
    assert base.architecture.mlp_ratio == 4.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qk_norm": True}, "ViTForImageClassification has no qk_norm: True"),
        ({"pre_norm": True}, "pre_norm: True|a bias of the head"),
        ({"mlp_ratio": 2.5, "init_values": 1e-5}, "mlp_ratio: 2.5"),
        ({"class_token": False, "global_pool": "map"}, "global_pool: map"),
    ],
)
def test_what_no_class_of_transformers_is_is_refused(changes: dict[str, Any], message: str) -> None:
    recipe = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    tensors = {"head.weight": np.ones((2, 768), np.float32), "head.bias": np.ones(2, np.float32)}
    with pytest.raises(UserError, match=f"transformers has no class for this model: .*({message})"):
        layout.pack(Architecture(**changes), recipe, tensors, ())


def test_weights_in_another_tools_codes_are_refused(tmp_path: Path) -> None:
    config = {"model_type": "vit", "quantization_config": {"quant_method": "fp8", "modules_to_not_convert": ["(a+)+$"]}}
    by_hand(tmp_path / "config.json", json.dumps(config))
    with pytest.raises(UserError, match="the weights are in another tool's codes"):
        open_path(tmp_path, Asked())
