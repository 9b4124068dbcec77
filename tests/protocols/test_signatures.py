"""What a backend offers has the parameters that the protocols declare, by name, order and kind."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import fake_backend
import pytest

import torch_ref.entry
import torch_ref.model
import torch_ref.trainer

# isort: split
import mlx_peft.backend.entry
import mlx_peft.backend.model
import mlx_peft.backend.trainer
from mlx_peft.protocols.backend import Backend
from mlx_peft.protocols.model import Model
from mlx_peft.protocols.trainer import Trainer

MODELS = [mlx_peft.backend.model.Model, torch_ref.model.Model, fake_backend.FakeModel]
TRAINERS = [mlx_peft.backend.trainer.Trainer, torch_ref.trainer.Trainer, fake_backend.FakeTrainer]
BACKENDS = [mlx_peft.backend.entry, torch_ref.entry, fake_backend]


def functions(kind: Any) -> dict[str, list[tuple[str, Any, Any]]]:
    """The parameters of what it declares or has, by name; of each its name, kind and default."""
    return {
        name: [
            (parameter.name, parameter.kind, parameter.default)
            for parameter in inspect.signature(function).parameters.values()
            if parameter.name != "self"
        ]
        for name, function in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


@pytest.mark.parametrize(
    ("protocol", "found"),
    [
        *((Model, kind) for kind in MODELS),
        *((Trainer, kind) for kind in TRAINERS),
        *((Backend, module) for module in BACKENDS),
    ],
)
def test_each_function_is_called_as_declared(protocol: type, found: type | ModuleType) -> None:
    wanted, there = functions(protocol), functions(found)
    assert wanted
    assert {name: there.get(name) for name in wanted} == wanted
