"""What is wrong with a configuration of PEFT's is said in our words, without a library's web address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from convert.adapters import lora
from mlx_peft.cli.app import app
from mlx_peft.core.errors import UserError

LAYER = "blocks.0.attn.proj"
COMMON = {"target_modules": ["proj"], "bias": "none", "peft_type": "LORA"}
A, B = np.zeros((2, 8), np.float32), np.zeros((8, 2), np.float32)


@pytest.mark.parametrize(
    ("reader", "config", "tensors"),
    [
        (lora, {"r": 2, "lora_alpha": -1}, {"lora_A.weight": A, "lora_B.weight": B}),
        (lora, {"r": 2, "lora_alpha": 4, "lora_dropout": 7}, {"lora_A.weight": A, "lora_B.weight": B}),
        (lora, {"r": 10**400, "lora_alpha": 4}, {"lora_A.weight": A, "lora_B.weight": B}),
    ],
)
def test_no_web_address(reader: Any, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    packed = {f"{LAYER}.{name}": tensor for name, tensor in tensors.items()}
    with pytest.raises(UserError) as refused:
        reader.from_peft(COMMON | config, packed, Path("adapter"))
    message = str(refused.value)
    assert "should be" in message and "pydantic" not in message and len(message) < 1000


def test_a_model_s_name_on_the_command_line_is_met_likewise() -> None:
    done = CliRunner().invoke(app, ["predict", ".", "x.png", "--model", "v" * 5000])
    assert done.exit_code == 2
    assert "--model: name: should be text of at most 200 characters, not 'vvv" in done.stderr
