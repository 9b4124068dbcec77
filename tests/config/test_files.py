"""Experiment files: composition, overrides, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_peft.config.files import MAX_FILES, compose, dump, load, override
from mlx_peft.config.methods import Linear, LoRA
from mlx_peft.config.schema import SGD, AdamW, Experiment
from mlx_peft.config.yaml_io import MAX_BYTES, write
from mlx_peft.core.errors import UserError

VALID = "model: {name: vit_small_patch16_224}\nmethod: {name: lora, rank: 4, targets: [q, v]}\ndata: {name: digits}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(VALID)
    return path


def refusal(path: Path, *overrides: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(path, overrides, **options)
    return str(caught.value)


def test_a_file_is_read(file: Path) -> None:
    experiment = load(file)
    assert experiment.method == LoRA(rank=4, targets=("q", "v"))
    assert experiment.train.optimizer == AdamW()


def test_overrides_win_over_the_file(file: Path) -> None:
    experiment = load(
        file, ["method.rank=16", "train.optimizer.lr=1e-4", "method.targets=[fc1]", "train.clip_norm=null"]
    )
    assert experiment.method == LoRA(rank=16, targets=("fc1",))
    assert experiment.train.optimizer == AdamW(lr=1e-4)
    assert experiment.train.clip_norm is None


def test_the_last_of_two_overrides_counts(file: Path) -> None:
    assert load(file, ["seed=1", "seed=2"]).seed == 2


def test_another_variant_drops_the_keys_of_the_old_one(file: Path) -> None:
    assert load(file, ["method.name=linear"]).method == Linear()
    assert load(file, ["train.optimizer.name=sgd"]).train.optimizer == SGD(name="sgd")


def test_another_variant_keeps_what_the_command_line_says_of_it(file: Path) -> None:
    file.write_text(VALID + "train: {optimizer: {lr: 0.5, betas: [0.8, 0.9]}}\n")
    experiment = load(file, ["train.optimizer.momentum=0.5", "train.optimizer.name=sgd"])
    assert experiment.train.optimizer == SGD(name="sgd", momentum=0.5)


def test_the_same_variant_keeps_its_keys(file: Path) -> None:
    file.write_text(VALID + "train: {optimizer: {lr: 0.5}}\n")
    experiment = load(file, ["method.name=lora", "train.optimizer.name=adamw"])
    assert experiment.method == LoRA(rank=4, targets=("q", "v"))
    assert experiment.train.optimizer == AdamW(lr=0.5)


def test_another_model_keeps_its_section(file: Path) -> None:
    file.write_text(VALID.replace("224}", "224, weights: none}"))
    assert load(file, ["model.name=deit_tiny_patch16_224"]).model.weights == "none"


@pytest.mark.parametrize("text", ["rank", "=3", ".rank=3", "method..rank=3", "method.=3"])
def test_what_is_no_override_is_refused(file: Path, text: str) -> None:
    assert "write key=value, such as method.rank=16" in refusal(file, text)


def test_an_override_that_is_no_yaml_is_refused_by_its_name(file: Path) -> None:
    assert "override 'method.targets=[qkv'" in refusal(file, "method.targets=[qkv")


words = st.text("abcdefgh_", min_size=1, max_size=6)


@settings(max_examples=60)
@given(st.dictionaries(words, st.dictionaries(words, st.integers() | st.booleans() | words, min_size=1, max_size=3)))
def test_overrides_build_the_tree_that_they_name(tree: dict[str, dict[str, Any]]) -> None:
    lines = [f"{a}.{b}={write({'v': v})[2:].strip()}" for a, inner in tree.items() for b, v in inner.items()]
    assert override(lines).values == tree


def test_bases_compose_and_the_later_wins(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "a.yaml").write_text("seed: 1\ntrain: {epochs: 1, accumulate: 2}\n")
    (folder / "b.yaml").write_text("base: a.yaml\nseed: 2\n")
    (folder / "c.yaml").write_text("train: {epochs: 3}\n")
    (tmp_path / "top.yaml").write_text("base: [parts/b.yaml, parts/c.yaml]\n" + VALID + "train: {log_every: 7}\n")
    experiment = load(tmp_path / "top.yaml")
    assert (experiment.seed, experiment.train.epochs) == (2, 3)
    assert (experiment.train.accumulate, experiment.train.log_every) == (2, 7)


def test_a_variant_in_a_file_drops_its_base_s(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(VALID)
    (tmp_path / "b.yaml").write_text("base: a.yaml\nmethod: {name: linear}\n")
    assert load(tmp_path / "b.yaml").method == Linear()


def test_a_base_may_leave_the_variant_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("method: {rank: 3}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nmethod: {name: lora}\n")
    assert compose(tmp_path / "b.yaml").values["method"] == {"rank": 3, "name": "lora"}


def test_a_cycle_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: [c.yaml]\n")
    (tmp_path / "c.yaml").write_text("base: [b.yaml]\n")
    assert "form a cycle: b.yaml -> c.yaml -> b.yaml" in refusal(tmp_path / "a.yaml")


def test_files_that_multiply_are_refused(tmp_path: Path) -> None:
    for n in range(40):
        (tmp_path / f"{n}.yaml").write_text(f"base: [{n + 1}.yaml, {n + 1}.yaml]\n")
    (tmp_path / "40.yaml").write_text("")
    assert f"more than {MAX_FILES} files" in refusal(tmp_path / "0.yaml")


def test_a_base_that_is_missing_is_named(tmp_path: Path, file: Path) -> None:
    file.write_text("base: parts/none.yaml\n")
    assert refusal(file) == f"{tmp_path / 'parts' / 'none.yaml'}: No such file or directory"


def test_a_base_of_another_kind_is_refused(file: Path) -> None:
    file.write_text("seed: 1\nbase: [3]\n")
    assert refusal(file) == f"{file}:2: base should be a file or a list of files"


def test_files_that_are_no_text_or_too_large_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large").write_text("# " + "x" * MAX_BYTES)
    assert "not a text file" in refusal(tmp_path / "binary")
    assert "too large" in refusal(tmp_path / "large")
    assert "Is a directory" in refusal(tmp_path)


def test_every_error_is_said_at_once_with_its_place(tmp_path: Path, file: Path) -> None:
    (tmp_path / "base.yaml").write_text("method: {name: lora, rnk: 8}\n")
    file.write_text(
        "base: base.yaml\nmodle: {}\nmodel: {name: vit}\nmethod:\n  targets: [qvk]\n"
        "data: {name: digits, batch_size: 8.5}\ntrain: {epochs: '3', schedule: {name: cosin}}\n"
    )
    assert refusal(file, "train.clip_norm=-1", "backend=jax").splitlines() == [
        f"{file} is not a valid experiment:",
        "  backend: unknown 'jax'; known: mlx, torch  [command line]",
        f"  method.targets[0]: unknown 'qvk'; did you mean 'qkv'?  [{file}:5]",
        f"  method.rnk: unknown key; did you mean 'rank'?  [{tmp_path / 'base.yaml'}:1]",
        f"  data.batch_size: should be a whole number, not 8.5  [{file}:6]",
        f"  train.epochs: should be a whole number, not '3'  [{file}:7]",
        f"  train.schedule.name: unknown 'cosin'; did you mean 'cosine'?  [{file}:7]",
        "  train.clip_norm: should be greater than 0, not -1  [command line]",
        f"  modle: unknown key; did you mean 'model'?  [{file}:2]",
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.name=loar"], "method.name: unknown 'loar'; did you mean 'lora'?"),
        (["method.name=[1]"], "method.name: unknown [1]; known: linear, full, bitfit, layernorm, lora"),
        (["method=lora"], "method: should be a section of keys and values, such as {name: lora}, not 'lora'"),
        (["tokens=none"], "tokens: should be a section of keys and values, such as {name: tome}, or null, not 'none'"),
        (["quantize=4"], "quantize: should be a section of keys and values or null, not 4"),
        (["train=3"], "train: should be a section of keys and values, not 3"),
        (["data.flip=true"], "data.flip: unknown key"),
        (["data.augment.flip=yes"], "data.augment.flip: should be true or false, not 'yes'"),
        (["data.augment.scale=[1, 2, 3]"], "data.augment.scale: should be a list of at most 2, not [1, 2, 3]"),
        (["data.augment.scale=[1]"], "data.augment.scale[1]: missing"),
        (["data.augment.scale=[2, 1]"], "data.augment.scale: should be a smaller and a larger number above 0"),
        (["data.augment.ratio=[0, 1]"], "data.augment.ratio: should be a smaller and a larger number above 0"),
        (["train.optimizer.betas=[0.9, 1.5]"], "train.optimizer.betas[1]: should be less than 1, not 1.5"),
        (["train.optimizer={name: sgd, momentum: 0, nesterov: true}"], "train.optimizer: nesterov needs a momentum"),
        (["data.root=3"], "data.root: should be text, not 3"),
        (["model.args.depth=[1]"], "model.args.depth: should be a number, text, true, false or null, not [1]"),
        (["model.args=3"], "model.args: should be a section of keys and values, not 3"),
        (["method.targets={qkv: 1}"], "method.targets: should be a list"),
        (["method.targets=[]"], "method.targets: should be a list of at least 1, not []"),
        (["method.targets=[q, qkv]"], "method.targets: 'qkv' already holds q, k and v"),
        (["data.split={val: 0.5, test: 0.6}"], "data.split: val 0.5 and test 0.6 leave no training images"),
        (["train.accumulate=7"], "data.batch_size 64 is not a multiple of train.accumulate 7"),
        (["seed=true"], "seed: should be a whole number, not true"),
        (["train.optimizer.lr=fast"], "train.optimizer.lr: should be a number, not 'fast'"),
    ],
)
def test_a_wrong_value_is_met_with_what_would_be_right(file: Path, overrides: list[str], message: str) -> None:
    assert f"\n  {message}" in refusal(file, *overrides).replace("experiment: ", "")


def test_an_item_of_a_list_is_placed_where_the_list_is(file: Path) -> None:
    message = "method.targets[0]: unknown 'qvk'; did you mean 'qkv'?"
    assert f"{message}  [command line]" in refusal(file, "method.targets=[qvk]")
    file.write_text(VALID.replace("[q, v]", "[qvk]"))
    assert f"{message}  [{file}:2]" in refusal(file)


def test_what_is_left_out_is_named(file: Path) -> None:
    file.write_text("method: {rank: 8}\nmodel: {weights: none}\n")
    message = refusal(file)
    assert "  model.name: missing" in message
    assert "  method.name: missing; one of 'linear', 'full', 'bitfit', 'layernorm', 'lora'" in message
    assert "  data: missing" in message


def test_names_are_checked_along_with_the_rest(file: Path) -> None:
    def refuse(name: str) -> None:
        raise UserError(f"unknown model {name!r}")

    message = refusal(file, "seed=x", checks={"model.name": refuse})
    assert f"model.name: unknown model 'vit_small_patch16_224'  [{file}:1]" in message
    assert "seed: should be a whole number, not 'x'" in message
    assert "model.name: unknown" in refusal(file, checks={"model.name": refuse})


def test_defaults_are_below_the_file(file: Path) -> None:
    assert load(file, defaults={"backend": "torch"}).backend == "torch"
    assert load(file, ["backend=mlx"], defaults={"backend": "torch"}).backend == "mlx"
    file.write_text(VALID + "backend: mlx\n")
    assert load(file, defaults={"backend": "torch"}).backend == "mlx"


experiments = st.builds(
    lambda rank, alpha, targets, lr, epochs, root, clip, args: {
        "model": {"name": "vit", "args": args},
        "method": {"name": "lora", "rank": rank, "alpha": alpha, "targets": targets},
        "data": {"name": "digits", "root": root},
        "train": {"epochs": epochs, "optimizer": {"name": "adamw", "lr": lr}, "clip_norm": clip},
    },
    rank=st.integers(1, 512),
    alpha=st.floats(1e-30, 1e30),
    targets=st.permutations(["qkv", "proj", "fc1"]),
    lr=st.floats(1e-300, 1.0, exclude_min=True),
    epochs=st.integers(1, 1000),
    root=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20),
    clip=st.none() | st.floats(1e-6, 1e6),
    args=st.dictionaries(words, st.integers() | st.booleans() | st.none() | words | st.floats(-1e9, 1e9), max_size=3),
)


@settings(max_examples=60)
@given(tree=experiments)
def test_a_dump_is_read_back_equal(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> None:
    experiment = Experiment.model_validate(tree)
    path = tmp_path_factory.getbasetemp() / "dump.yaml"
    path.write_text(dump(experiment), "utf-8")
    assert load(path) == experiment
