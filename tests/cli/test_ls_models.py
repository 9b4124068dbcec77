"""``ls models`` narrowed down, and ``ls families``: where weights are had, under which licence."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from mlx_peft.vit.families import FAMILIES, family_of
from mlx_peft.vit.registry import names, tags

Listed = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def listed(command: Any) -> Listed:
    """The models that are listed, by name."""

    def ask(*arguments: str) -> dict[str, dict[str, Any]]:
        done = command("ls", "models", *arguments, "--json")
        assert done.exit_code == 0, done.stderr
        return {entry["name"]: entry for entry in json.loads(done.stdout)}

    return ask


def test_of_a_model_its_size_and_its_weights_licences_are_listed(command: Any, listed: Listed) -> None:
    [entry] = listed("vit_base_patch16_clip_quickgelu_224").values()
    assert (entry["parameters"], entry["image_size"]) == (85_799_424, 224)  # timm's, without its head
    assert entry["licenses"] == ["apache-2.0", "cc-by-nc-4.0"]
    openai = next(weights for weights in entry["weights"] if weights["tag"] == "openai")
    assert openai["hub_id"] == "timm/vit_base_patch16_clip_224.openai"
    assert (openai["classes"], openai["license"], openai["gated"]) == (512, "apache-2.0", None)
    done = command("ls", "models", "vit_base_patch16_clip_quick*")
    assert "85,799,424" in done.stdout and "apache-2.0, cc-by-nc-4.0" in done.stdout
    assert "gating) is not known" in done.stderr and "ls families" in done.stderr


def test_what_is_asked_narrows_models_and_their_weights(listed: Listed) -> None:
    dinov2 = listed("--family", "dinov2", "--size", "small")
    assert dinov2.keys() == {"vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"}
    [base] = listed("vit_base_patch16_224", "--licence", "cc-by-nc-4.0", "--family", "mae").values()
    assert [weights["tag"] for weights in base["weights"]] == ["mae"]
    assert (base["families"], base["licenses"], base["description"]) == (["mae"], ["cc-by-nc-4.0"], "mae")
    [miil] = listed("--licence", "unknown").values()
    assert [weights["tag"] for weights in miil["weights"]] == ["bamboo"]


def test_of_one_option_any_value_counts_of_different_ones_all(listed: Listed) -> None:
    both = listed("--family", "dino", "--family", "mae", "--weights")
    assert both.keys() == listed("--family", "dino").keys() | listed("--family", "mae").keys()
    large = listed("--family", "dino", "--family", "mae", "--size", "huge", "--licence", "cc-*")
    assert large.keys() == {"vit_huge_patch14_224"}
    assert listed("deit", "--family", "mae") == {}


def test_an_image_size_is_that_of_weights(listed: Listed) -> None:
    for size in (224, 378, 518):
        found = listed("--image-size", str(size))
        assert found and all(one["image_size"] == size for entry in found.values() for one in entry["weights"])
        assert all(entry["image_size"] == size for entry in found.values())


@pytest.mark.parametrize(("size", "low", "high"), [("-6M", 0, 6e6), ("20-40M", 20e6, 40e6), ("1.1b-", 1.1e9, 1e12)])
def test_a_size_is_a_range_of_parameters(size: str, low: float, high: float, listed: Listed) -> None:
    found = listed("--size", size)
    assert found.keys() == {name for name, entry in listed().items() if low <= entry["parameters"] <= high} != set()


def test_models_with_weights_and_without_are_all_models(listed: Listed) -> None:
    having, lacking = listed("--weights"), listed("--no-weights")
    assert {"vit_giant_patch14_224", "vit_huge_patch14_gap_224"} <= lacking.keys()  # none at all; not on the hub
    assert having.keys() | lacking.keys() == set(names())
    assert all(one["hub_id"] for entry in having.values() for one in entry["weights"])


def test_an_empty_answer_says_so_and_what_leaves_none(command: Any, listed: Listed) -> None:
    assert listed("deit", "--size", "huge", "--family", "dino") == {}
    done = command("ls", "models", "deit", "--size", "huge", "--family", "dino")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no models match 'deit' --family dino --size huge (there would be 1 without --family dino)" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models", "--family", "mea"], "there is no family 'mea'; did you mean 'mae'"),
        (["models", "--licence", "apache"], "no weights have the licence 'apache'"),
        (["models", "--size", "hugge"], "'hugge' is no size; did you mean 'huge'"),
        (["models", "--size", "-"], "names no number of parameters: write 5M-30M, -30M or 1B-"),
        (["methods", "--no-weights"], "--no-weights: only models are asked for so, and not methods"),
    ],
)
def test_what_nothing_is_called_is_refused(command: Any, arguments: list[str], message: str) -> None:
    done = command("ls", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_family_says_where_its_weights_are_had_and_under_which_licence(command: Any) -> None:
    found = {entry["name"]: entry for entry in json.loads(command("ls", "families", "--json").stdout)}
    assert list(found) == [family.name for family in FAMILIES]
    assert found["dinov3"]["licenses"] == ["dinov3-license"] and "facebook/dinov3" in found["dinov3"]["consent"]
    assert sum(entry["tags"] for entry in found.values()) == sum(len(tags(name)) for name in names())
    assert found["mae"]["licenses"] == ["cc-by-nc-4.0"]
    assert (found["ijepa"]["on_hub"], found["ijepa"]["tags"]) == (0, 4)
    assert found["dinov2"]["origin"] == "https://github.com/facebookresearch/dinov2"
    said = command("ls", "models", "--family", "mae").stderr
    assert "mae: masked autoencoders (He et al. 2022). Published at https://github.com/facebookresearch/mae;" in said
    assert "3 of 3 weights are timm's copies on the hub; licences as timm states them: cc-by-nc-4.0" in said


def test_weights_of_one_origin_are_of_one_family() -> None:
    families = {f"{name}.{tag}": family_of(name, tag).name for name in names() for tag in tags(name)}
    assert families["vit_base_patch14_reg4_dinov2.lvd142m"] == "dinov2"
    assert families["vit_base_patch16_clip_quickgelu_224.openai"] == "clip"
    assert families["vit_so400m_patch14_siglip_224.v2_webli"] == "siglip2"
    assert families["vit_so400m_patch14_siglip_224.webli"] == "siglip"
    assert families["vit_base_patch16_224.sam_in1k"] == "vit"
    assert families["vit_wee_patch16_reg1_gap_256.sbb_in1k"] == "timm"
