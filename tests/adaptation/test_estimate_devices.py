"""Devices are found by the names that people and drivers give them, and no other is taken for one."""

from __future__ import annotations

import pytest

from mlx_peft.adaptation.estimate import devices
from mlx_peft.core.errors import UserError


def test_each_says_where_its_figures_stand() -> None:
    assert all(device.source and device.bandwidth and device.memory for device in devices.DEVICES.values())


def test_are_found_by_any_usual_spelling() -> None:
    assert devices.find("M2 Max") is devices.find("m2_max") is devices.DEVICES["m2-max"]
    with pytest.raises(UserError, match="did you mean 'm2-max'"):
        devices.find("m2-mex")


def test_are_found_with_their_makers_names_too() -> None:
    assert devices.find("NVIDIA GeForce RTX 4090") is devices.DEVICES["rtx-4090"]
    assert devices.find(" Apple M5 Pro ") is devices.DEVICES["m5-pro"]
    assert {*devices.QUOTED} <= devices.DEVICES.keys()


@pytest.mark.parametrize(
    ("said", "gib", "key"),
    [
        ("NVIDIA A100-SXM4-80GB", 79.15, "a100"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40"),
        ("NVIDIA A10", 22.5, "a10"),
        ("NVIDIA L40S", 44.4, "l40s"),
        ("NVIDIA L4", 22.0, "l4"),
        ("NVIDIA H100 80GB HBM3", 79.1, "h100"),
        ("NVIDIA H200", 139.8, "h200"),
        ("Tesla T4", 14.6, "t4"),
        ("Tesla V100-SXM2-32GB", 31.7, "v100"),
        ("NVIDIA GeForce RTX 4090", 23.6, "rtx-4090"),
        ("Apple M2 Max", None, "m2-max"),
        ("Tesla V100-SXM2-16GB", 15.8, None),
        ("NVIDIA A10G", 22.1, None),
        ("NVIDIA H100 PCIe", 79.1, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.7, None),
        ("NVIDIA GeForce RTX 3090 Ti", 23.7, None),
        ("Apple M9", None, None),
    ],
)
def test_are_recognised_by_what_a_driver_says_and_no_other_is(said: str, gib: float, key: str | None) -> None:
    memory = None if gib is None else int(gib * devices.GIB)
    assert devices.recognised(said, memory) is (None if key is None else devices.DEVICES[key])


def test_without_tf32_have_its_products_in_float32() -> None:
    for key in ("m2-max", "t4"):
        assert devices.find(key).rate("tf32") == devices.find(key).rate("float32")
    assert devices.find("a100").rate("tf32") == 156e12
