"""``estimate``: what it prints, its exit status, and that nothing is loaded for it."""

from __future__ import annotations

import json

import pytest

from mlx_peft.checks import estimating

RECIPE = "vit-small-lora-cifar10"


@pytest.fixture(autouse=True)
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(estimating, "load_base", never)


def test_the_parts_the_verdict_and_the_bound_are_told(command) -> None:
    said = command("estimate", RECIPE, "--device", "h100", obj="torch")
    assert said.exit_code == 0
    assert "weights" in said.stdout
    assert "fits: " in said.stdout
    assert "of the 80.0 GiB of NVIDIA H100" in said.stdout
    assert "a step takes at least" in said.stdout


def test_what_will_not_fit_has_status_1_and_the_change_that_does(command) -> None:
    said = command("estimate", RECIPE, "--device", "m2-max", "--memory", "1GB", "--json")
    assert said.exit_code == 1
    found = json.loads(said.stdout)
    assert not found["fits"]
    assert found["peak"] == sum(found["memory"].values()) > 1e9
    changed = command("estimate", RECIPE, *found["change"], "--device", "m2-max", "--memory", "1GB")
    assert changed.exit_code == 0, changed.output


def test_an_interpreter_without_frameworks_can_be_asked_of_a_device(command, monkeypatch) -> None:
    monkeypatch.setattr(estimating, "load_backend", None)
    assert command("estimate", RECIPE, "--device", "t4", "--classes", 3).exit_code == 0


@pytest.mark.parametrize("memory", ["much", "0", "GB", "-1GB", "3 apples"])
def test_what_is_no_size_is_refused(command, memory) -> None:
    said = command("estimate", RECIPE, "--device", "t4", f"--memory={memory}")
    assert said.exit_code == 2
    assert "24GB" in said.stderr


def test_several_processes_share_the_batch(command) -> None:
    words = ("estimate", RECIPE, "--device", "t4", "--json")
    one, four = (json.loads(command(*words, "--processes", count).stdout) for count in (1, 4))
    quarter = json.loads(command(*words, f"data.batch_size={one['batch_size'] // 4}").stdout)
    assert four["peak"] == quarter["peak"] < one["peak"]
    refused = command(*words, "--processes", 7)
    assert refused.exit_code == 2
    assert "7 processes cannot share evenly" in refused.stderr


def test_what_this_machine_has_no_memory_for_is_not_measured(command) -> None:
    words = ("estimate", RECIPE, "data.batch_size=1048576", "model.image_size=448", "--device", "h100", "--measure")
    refused = command(*words, obj="torch")
    assert refused.exit_code == 2
    assert "it cannot be measured here (--measure)" in refused.stderr


def test_an_unknown_device_is_named_with_the_nearest(command) -> None:
    said = command("estimate", RECIPE, "--device", "h10")
    assert said.exit_code == 2
    assert "did you mean 'h100'" in said.stderr


def test_the_machine_s_own_memory_is_the_default(command) -> None:
    said = command("estimate", RECIPE, "data.batch_size=1", "--json", obj="torch")
    assert json.loads(said.stdout)["device"]["memory"] > 0
