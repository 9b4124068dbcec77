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


def test_an_unknown_device_is_named_with_the_nearest(command) -> None:
    said = command("estimate", RECIPE, "--device", "h10")
    assert said.exit_code == 2
    assert "did you mean 'h100'" in said.stderr


def test_the_machine_s_own_memory_is_the_default(command) -> None:
    said = command("estimate", RECIPE, "data.batch_size=1", "--json", obj="torch")
    assert json.loads(said.stdout)["device"]["memory"] > 0
