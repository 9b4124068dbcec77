"""The shipped registry, entry by entry against the timm that is installed."""

from __future__ import annotations

import inspect
import json

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg

from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.registry import FILE, Resampling, altered, find, names, tags
from mlx_peft.vit.shapes import shapes
from torch_ref.tools import registry as generator

DATA = json.loads(FILE.read_text(encoding="utf-8"))
ACTIVATIONS = {"gelu": "GELU", "gelu_tanh": "GELUTanh", "quick_gelu": "QuickGELU", "silu": "SiLU"}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch fills no parameter: without values to fill, it takes most of the time that a model's structure takes."""
    for fill in ("uniform_", "normal_", "trunc_normal_", "constant_", "ones_", "zeros_", "kaiming_uniform_"):
        monkeypatch.setattr(torch.nn.init, fill, lambda tensor, *_, **__: tensor)


def depth_of(caught: generator.Caught) -> int:
    """How many blocks timm builds: as many as its model's function says, or its class."""
    if "depth" in caught.arguments:
        depth: int = caught.arguments["depth"]
        return depth
    return int(inspect.signature(caught.model_class).parameters["depth"].default)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("blocks", [2, pytest.param(None, marks=pytest.mark.slow)], ids=["two blocks", "whole"])
@pytest.mark.parametrize("name", names())
def test_an_entry_describes_the_model_that_timm_builds(name: str, blocks: int | None) -> None:
    entry = find(name)
    architecture = entry.architecture
    assert architecture.depth == depth_of(generator.construction(name))
    depth = blocks or architecture.depth
    unfilled = {"weight_init": "skip"} if architecture.family == "vit" else {}
    with torch.device("meta"):
        model = timm.create_model(entry.name, num_classes=7, depth=depth, **unfilled)
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes(altered(architecture, {"depth": depth}, "depth"), 7) == found

    block = model.blocks[0]
    assert type(block.mlp.act).__name__.removesuffix("_") == ACTIVATIONS[architecture.act_layer]
    assert type(block.norm1).__name__.lower() == architecture.norm_layer
    assert block.norm1.eps == architecture.norm_eps
    assert block.attn.num_heads == architecture.num_heads
    assert model.global_pool == architecture.global_pool
    if architecture.family == "vit":  # Eva pools as it must: all tokens by attention, patches by their mean
        assert model.pool_include_prefix == architecture.pool_include_prefix
    of_patches = architecture.family != "beit" and model.no_embed_class  # Beit's are of all tokens
    assert of_patches == architecture.no_embed_class
    assert model.patch_embed.img_size == (architecture.img_size, architecture.img_size)


def test_every_tag_has_the_preprocessing_and_the_place_that_timm_knows() -> None:
    count = 0
    for name in names():
        for tag in tags(name):
            count += 1
            entry, cfg = find(f"{name}.{tag}"), get_pretrained_cfg(f"{name}.{tag}")
            assert entry.preprocessing is not None
            found = entry.preprocessing.model_dump()
            assert found == {key: getattr(cfg, key) for key in found}, entry.name
            assert cfg.input_size == (3, entry.architecture.img_size, entry.architecture.img_size)
            assert (entry.hub_id or "", entry.license) == (cfg.hf_hub_id or "", cfg.license)
            assert (entry.num_classes, cfg.label_offset or 0) == (cfg.num_classes, 0)
    assert count > 300


def test_without_a_tag_a_name_means_the_weights_that_timm_would_take() -> None:
    for name in names():
        default = get_pretrained_cfg(name)
        assert find(name).tag == (default.tag if default.has_weights else None)


def test_the_data_file_is_what_the_generator_writes() -> None:
    written = generator.registry()
    for name, model in DATA["models"].items():  # a newer timm may know more models and tags, and list them otherwise
        again = written["models"][name]
        assert again["architecture"] == model["architecture"]
        assert again.get("resampling") == model.get("resampling")
        assert again["tags"].items() >= model["tags"].items()
    assert written["left_out"].items() >= DATA["left_out"].items()
    assert json.loads(generator.dumps(DATA)) == DATA
    assert FILE.read_text(encoding="utf-8") == generator.dumps(DATA) + "\n"


def test_a_model_that_is_no_plain_vit_is_refused_with_the_reason() -> None:
    assert len(DATA["left_out"]) + len(names()) >= 251
    with pytest.raises(UserError, match="'vit_base_patch16_xp_224' is not supported: its blocks run attention and"):
        find("vit_base_patch16_xp_224")


def test_unknown_names_are_met_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown model 'deit_tinny_patch16_224'; did you mean 'deit_tiny_patch16_224'"):
        find("deit_tinny_patch16_224")
    with pytest.raises(
        UserError, match=r"no weights with the tag 'fb_in2k'; did you mean 'fb_in1k'\? \(its tags: fb_in1k\)"
    ):
        find("deit_tiny_patch16_224.fb_in2k")
    with pytest.raises(UserError, match="no weights with the tag 'x' \\(it has none\\)"):
        find("vit_giant_patch14_224.x")


def test_without_published_weights_no_normalisation_is_known() -> None:
    entry = find("vit_giant_patch14_224")
    assert entry.preprocessing is None
    assert entry.tag is None and entry.hub_id is None


def test_the_checkpoint_filters_resampling_is_kept() -> None:
    assert find("vit_small_patch16_224").resampling == Resampling("bicubic", True, False)
    assert find("flexivit_small").resampling == Resampling("bilinear", False, False)
    assert find("vit_base_patch16_radio_v3").resampling == Resampling("bilinear", False, True)


def test_an_altered_architecture_is_checked() -> None:
    small = altered(Architecture(), {"depth": 2}, "model.args")
    assert small == Architecture(depth=2)
    with pytest.raises(UserError, match=r"model\.args\.dept: no such field of a ViT; did you mean 'depth'\?"):
        altered(Architecture(), {"dept": 2}, "model.args")
    with pytest.raises(UserError, match=r"model\.args\.depth: .*greater than or equal to 1"):
        altered(Architecture(), {"depth": 0}, "model.args")
    with pytest.raises(UserError, match=r"model\.args: .*not a multiple of num_heads 5"):
        altered(Architecture(), {"num_heads": 5}, "model.args")
    with pytest.raises(UserError, match="a hidden layer of 341, which has no equal halves"):
        altered(
            Architecture(), {"embed_dim": 64, "num_heads": 1, "mlp_ratio": 16 / 3, "mlp_layer": "swiglu_packed"}, "a"
        )
