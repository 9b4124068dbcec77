"""What is wrong with a configuration of PEFT's is said in our words, without a library's web address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from banks import adapter, base_of
from method_models import KINDS
from typer.testing import CliRunner

from convert.adapters import lora
from convert.adapters.formats import FORMATS
from convert.adapters.peft import write_adapter
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


UNMERGED = [kind for kind in KINDS.values() if kind.unmerged is not None and FORMATS[kind].from_peft is None]


@pytest.mark.parametrize("kind", UNMERGED, ids=lambda kind: kind.model_fields["name"].default)
def test_what_peft_does_not_know_is_said_before_that_it_cannot_be_merged(tmp_path: Path, kind: Any) -> None:
    own = adapter(base_of(), kind(), 0)
    write_adapter(tmp_path / "own", own)

    def asked_for(to: str) -> str:
        done = CliRunner().invoke(app, ["convert", str(tmp_path / "own"), str(tmp_path / to), "--to", to])
        assert done.exit_code == 2
        return done.stderr

    assert f"Hugging Face PEFT has no method '{own.method.name}'" in asked_for("peft")
    assert "cannot be merged" in asked_for("timm")
