"""Suite files: what becomes of base, set, axes, seeds and the command line, and how they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_peft.config import recipes, suite
from mlx_peft.config.methods import Linear, LoRA
from mlx_peft.config.schema import SGD
from mlx_peft.config.tokens import ToMe
from mlx_peft.core.errors import UserError
from mlx_peft.data import REGISTRY
from mlx_peft.vit import registry

BASE = (
    "model: {name: vit_small_patch16_224}\nmethod: {name: lora, rank: 4, targets: [q, v]}\n"
    "data: {name: digits}\ntrain: {epochs: 7, optimizer: {name: adamw, lr: 0.5, betas: [0.8, 0.9]}}\n"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path / "suite.yaml"


def runs(file: Path, text: str, *overrides: str, **options: Any) -> dict[str, Any]:
    file.write_text(f"base: base.yaml\n{text}")
    return {run.name: run.experiment for run in suite.load(file, overrides, **options).runs}


def refusal(file: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        runs(file, text, *overrides)
    return str(caught.value).splitlines()


def test_the_base_alone_is_one_run(file: Path) -> None:
    found = runs(file, "")
    assert list(found) == ["base"]
    assert found["base"].method == LoRA(rank=4, targets=("q", "v"))


def test_a_recipe_may_be_the_base(file: Path) -> None:
    file.write_text("base: quickstart\n")
    assert [run.name for run in suite.load(file).runs] == ["quickstart"]


def test_a_dotted_key_changes_one_value_and_leaves_the_others(file: Path) -> None:
    (run,) = runs(file, "set: {method.rank: 16, train.optimizer.lr: 0.1}\n").values()
    assert run.method == LoRA(rank=16, targets=("q", "v"))
    assert (run.train.epochs, run.train.optimizer.lr, run.train.optimizer.betas) == (7, 0.1, (0.8, 0.9))


def test_a_section_takes_the_place_of_the_base_s(file: Path) -> None:
    (run,) = runs(file, "set: {method: {name: lora, dora: true}, train.optimizer: {lr: 0.1}}\n").values()
    assert run.method == LoRA(dora=True)
    assert (run.train.epochs, run.train.optimizer.betas) == (7, (0.9, 0.999))


def test_a_key_inside_a_section_counts_wherever_it_stands(file: Path) -> None:
    (run,) = runs(file, "set: {method.rank: 2, method: {name: lora}}\n").values()
    assert run.method == LoRA(rank=2)


def test_another_variant_by_its_name_alone_drops_the_old_one_s_keys(file: Path) -> None:
    (run,) = runs(file, "set: {method.name: linear, train.optimizer.name: sgd}\n").values()
    assert (run.method, run.train.optimizer) == (Linear(), SGD(name="sgd"))


def test_a_run_s_own_changes_win_over_the_suite_s(file: Path) -> None:
    text = "set: {train.epochs: 1, method.rank: 2}\nruns: [{name: a, set: {train.epochs: 9}}, {name: b}]\n"
    found = runs(file, text)
    assert [(run.train.epochs, run.method.rank) for run in found.values()] == [(9, 2), (1, 2)]


def test_axes_are_multiplied_in_the_order_of_the_file_and_named(file: Path) -> None:
    found = runs(file, "axes: {method.rank: [4, 8], train.optimizer.lr: [1e-3, 0.1]}\n")
    assert {name: (run.method.rank, run.train.optimizer.lr) for name, run in found.items()} == {
        "rank=4-lr=0.001": (4, 1e-3),
        "rank=4-lr=0.1": (4, 0.1),
        "rank=8-lr=0.001": (8, 1e-3),
        "rank=8-lr=0.1": (8, 0.1),
    }
    assert list(found) == ["rank=4-lr=0.001", "rank=4-lr=0.1", "rank=8-lr=0.001", "rank=8-lr=0.1"]


def test_an_axis_may_have_sections_and_lists(file: Path) -> None:
    found = runs(file, "axes: {method: [{name: linear}, {name: lora}], data.augment.scale: [[0.5, 1], [0.1, 1]]}\n")
    assert list(found)[1:3] == ["method=linear-scale=0.1,1", "method=lora-scale=0.5,1"]
    assert found["method=lora-scale=0.5,1"].method == LoRA()


def test_sections_of_one_name_are_told_apart_by_what_differs(file: Path) -> None:
    rates = "{name: tome, r: 1}, {name: tome, r: 2}, null, {name: evit, keep: 0.5, blocks: [1]}"
    found = runs(file, f"axes: {{tokens: [{rates}], method: [{{name: lora, rank: 4}}, {{name: linear}}]}}\n")
    assert list(found)[::2] == [f"tokens={name}-method=lora" for name in ("tome-r=1", "tome-r=2", "null", "evit")]
    assert found["tokens=tome-r=2-method=linear"].tokens == ToMe(r=2)
    methods = "{name: lora}, {name: lora, rank: 4, targets: [qkv]}, {name: lora, rank: 4, targets: [qkv, fc1]}"
    assert list(runs(file, f"axes: {{method: [{methods}]}}\n")) == [
        "method=lora", "method=lora-rank=4-targets=qkv", "method=lora-rank=4-targets=qkv,fc1"
    ]  # fmt: skip


def test_axes_that_end_alike_are_named_in_full(file: Path) -> None:
    assert list(runs(file, "axes: {data.split.seed: [1], data.split.val: [0.2], seed: [3]}\n")) == [
        "data.split.seed=1-val=0.2-seed=3"
    ]


def test_a_value_is_made_fit_for_a_folder_s_name(file: Path) -> None:
    assert list(runs(file, "axes: {data.root: [/some where/../x, '..'], method.blocks: ['last 4', null]}\n")) == [
        "root=some-where-..-x-blocks=last-4",
        "root=some-where-..-x-blocks=null",
        "root=none-blocks=last-4",
        "root=none-blocks=null",
    ]


def test_a_run_may_have_its_own_axes_or_none(file: Path) -> None:
    text = (
        "axes: {method.rank: [4, 8]}\nruns:\n  - {name: lora}\n"
        "  - {name: linear, set: {method: {name: linear}}, axes: {}}\n"
        "  - {name: dora, set: {method: {name: lora, dora: true}}, axes: {train.epochs: [1, 2]}}\n"
    )
    assert list(runs(file, text)) == ["lora-rank=4", "lora-rank=8", "linear", "dora-epochs=1", "dora-epochs=2"]


def test_an_axis_wins_over_a_run_s_section(file: Path) -> None:
    found = runs(file, "axes: {method.rank: [1, 2]}\nruns: [{name: dora, set: {method: {name: lora, dora: true}}}]\n")
    assert [(run.method.rank, run.method.dora) for run in found.values()] == [(1, True), (2, True)]


def test_every_run_is_made_with_every_seed(file: Path) -> None:
    found = runs(file, "seeds: [0, 5]\nruns: [{name: a}, {name: b}]\n")
    assert {name: run.seed for name, run in found.items()} == {
        "a-seed=0": 0,
        "a-seed=5": 5,
        "b-seed=0": 0,
        "b-seed=5": 5,
    }
    assert {name: run.seed for name, run in runs(file, "seeds: [5]\nruns: [{name: a}]\n").items()} == {"a": 5}


def test_the_command_line_wins_over_all_and_defaults_over_nothing(file: Path) -> None:
    text = "set: {train.epochs: 2}\nruns: [{name: a, set: {train.epochs: 3}}, {name: b, set: {backend: mlx}}]\n"
    found = runs(file, text, "train.epochs=9", defaults={"backend": "torch"})
    assert [(run.train.epochs, run.backend) for run in found.values()] == [(9, "torch"), (9, "mlx")]


def test_all_that_is_wrong_with_the_suite_is_said_at_once(file: Path) -> None:
    text = (
        "sed: [1]\nseeds: [-1]\nset: 3\naxes: {method.rank: [], a b: [1]}\n"
        "runs:\n  - {nam: a}\n  - {name: a/b, axes: {x: []}}\n"
    )
    assert refusal(file, text) == [
        f"{file} is not a valid suite:",
        f"  set: should be a section of keys and values, not 3  [{file}:4]",
        f"  seeds[0]: should be greater than or equal to 0, not -1  [{file}:3]",
        f"  axes: 'a b' is no key; write a section's name, or a path such as method.rank  [{file}:5]",
        "  runs[0].name: missing",
        f"  runs[0].nam: unknown key; did you mean 'name'?  [{file}:7]",
        "  runs[1].name: should be letters, digits and any of . _ + = , - (a folder gets this name), not 'a/b'"
        f"  [{file}:8]",
        f"  runs[1].axes: x should have at least one value  [{file}:8]",
        f"  sed: unknown key; did you mean 'seeds'?  [{file}:2]",
    ]


def test_all_that_is_wrong_with_the_runs_is_said_at_once_with_their_names_and_places(file: Path) -> None:
    text = (
        "set: {train.epoch: 1}\nruns:\n  - name: a\n    set: {method: {name: lora, rnk: 3}}\n"
        "  - {name: b, axes: {method.rank: [0, 1]}}\n"
    )
    assert refusal(file, text, "data.batch=3") == [
        f"{file} is not a valid suite:",
        f"  a: method.rnk: unknown key; did you mean 'rank'?  [{file}:5]",
        "  every run: data.batch: unknown key; did you mean 'batch_size'?  [command line]",
        f"  every run: train.epoch: unknown key; did you mean 'epochs'?  [{file}:2]",
        f"  b-rank=0: method.rank: should be greater than or equal to 1, not 0  [{file}:6]",
    ]


def test_names_of_models_and_data_are_checked_in_every_run(file: Path) -> None:
    checks = {"model.name": registry.find}
    with pytest.raises(UserError, match=r"a: model.name: .*did you mean 'vit_tiny_patch16_224'"):
        runs(file, "runs: [{name: a, set: {model.name: vit_tinny_patch16_224}}, {name: b}]\n", checks=checks)


HAN, HAN_IN_PARTS = "\ud55c", "\u1112\u1161\u11ab"
"""One letter, and its parts: one name of a folder on a Mac."""
HAN_NAMES = f"{f'name={HAN_IN_PARTS}'!r} (or 'name={HAN}')"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs: [{name: a}, {name: a}]\n", "two runs have the name 'a'"),
        ("runs: [{name: a}, {name: A}]\n", "two runs have the name 'A' (or 'a')"),
        (f"axes: {{data.name: [{HAN}, {HAN_IN_PARTS}]}}\n", f"two runs have the name {HAN_NAMES}"),
        ("axes: {method.rank: [4, 4]}\n", "two runs have the name 'rank=4'"),
        ("axes: {tokens: [{name: tome}, {name: tome}]}\n", "two runs have the name 'tokens=tome'"),
        (f"axes: {{seed: {list(range(101))}, data.batch_size: {list(range(1, 11))}}}\n", "more than 1000 runs"),
    ],
)
def test_runs_that_cannot_be_told_apart_or_are_too_many_are_refused(file: Path, text: str, message: str) -> None:
    right = "; a name is a folder's: change one of them" if "have the name" in message else ""
    assert refusal(file, text) == [f"{file}: {message}{right}"]


def test_a_base_that_is_nowhere_is_named(file: Path) -> None:
    file.write_text("base: quikstart\n")
    with pytest.raises(UserError, match=r"no recipe 'quikstart'; did you mean 'quickstart'"):
        suite.load(file)
    file.write_text("base: parts/none.yaml\n")
    with pytest.raises(UserError, match=f"{file.parent}/parts/none.yaml: no such file"):
        suite.load(file)
    file.write_text("runs: []\n")
    with pytest.raises(UserError, match=r"base: missing"):
        suite.load(file)


@pytest.mark.parametrize("name", recipes.names("suite"))
def test_a_shipped_suite_is_valid_and_names_what_exists(name: str) -> None:
    planned = suite.load(recipes.find(name, "suite")).runs
    assert len(planned) > 1
    for run in planned:
        registry.find(run.experiment.model.name)
        assert run.experiment.data.name in REGISTRY
    assert recipes.description(name, "suite")


def test_the_suite_on_real_images_has_the_promised_methods_and_no_test_split() -> None:
    planned = suite.load(recipes.find("textile-methods", "suite")).runs
    assert [run.name for run in planned] == [
        "linear", "lora-r4", "lora-r8", "lora-r16", "dora", "adalora", "vera", "ia3", "bitfit", "ssf", "adaptformer",
        "vpt-deep",
    ]  # fmt: skip
    for run in planned:
        split = run.experiment.data.split
        assert (split.val, split.test, run.experiment.model.image_size) == (0.25, 0.0, 112)


def test_what_is_made_of_a_run_follows_it(file: Path) -> None:
    file.write_text(
        "base: base.yaml\nruns:\n  - name: lora\n    axes: {method.rank: [2, 4]}\n"
        "    then: [{name: w4, quantize: {bits: 4}}, {name: merged, merge: exact}]\n  - name: other\n"
    )
    planned = suite.load(file).runs
    assert [run.name for run in planned] == [
        "lora-rank=2", "lora-rank=2-w4", "lora-rank=2-merged",
        "lora-rank=4", "lora-rank=4-w4", "lora-rank=4-merged", "other",
    ]  # fmt: skip
    assert [run.of for run in planned[:3]] == [None, "lora-rank=2", "lora-rank=2"]
    assert planned[1].experiment == planned[0].experiment


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("{name: w4, quantise: {bits: 4}}", "did you mean 'quantize'?"),
        ("{name: w4, quantize: {bits: 7}}", "bits"),
        ("{name: a/b, merge: exact}", "a folder gets this name"),
        ("{name: x}", "just one of"),
    ],
)
def test_a_wrong_step_is_named_with_its_place(file: Path, then: str, message: str) -> None:
    lines = refusal(file, f"runs: [{{name: lora, then: [{then}]}}]\n")
    assert any("runs[0].then[0]" in line and message in line for line in lines), lines


def test_a_step_whose_name_is_taken_is_refused(file: Path) -> None:
    text = "runs: [{name: a, then: [{name: b, merge: exact}]}, {name: a-b}]\n"
    assert "two runs have the name 'a-b'" in refusal(file, text)[0]
