"""A configuration of Hugging Face PEFT's for LoRA, as the method that does the same; PEFT itself is not needed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from mlx_peft.config.methods import LoRA, MethodConfig
from mlx_peft.config.methods.inits import INITS
from mlx_peft.config.words import KEYS, VALUES
from mlx_peft.core.errors import UserError, shown

KIND = "peft_type"
"""The field that all of PEFT's configurations have."""

NO_MATTER = {
    KIND, "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "megatron_core", "qalora_group_size", "runtime_config",
}  # fmt: skip
"""They change nothing of what is computed."""

HEADS = ("head", "head_dist", "classifier", "score", "fc_norm")
"""What is trained and saved beside the adapter in PEFT, and here always."""


def method_of(given: Any) -> MethodConfig:
    """A method of ours, or of PEFT's configuration the one that it describes, at PEFT's defaults.

    Raises:
        UserError: it is neither, or asks for what there is not here.
    """
    if isinstance(given, MethodConfig):
        return given
    if not _is_theirs(given):
        raise UserError(
            f"a method is wanted, by its name, 'lora', or LoRA(rank=8), not {shown(given)} ({type(given).__name__})"
        )
    name, asked = type(given).__name__, vars(given)
    if asked[KIND] != "LORA":
        raise UserError(f"of PEFT's configurations LoraConfig alone is understood, not {name}: name the method instead")
    options: dict[str, Any] = {"rank_pattern": asked["rank_pattern"], "alpha_pattern": asked["alpha_pattern"]}
    for key, value in _said(given).items():
        options |= _ours(f"{name}: {key}", key, value)
    return LoRA(**options | {"rank": asked["r"], "alpha": asked["lora_alpha"]})


def _is_theirs(given: Any) -> bool:
    return is_dataclass(given) and not isinstance(given, type) and KIND in {one.name for one in fields(given)}


def _said(config: Any) -> dict[str, Any]:
    """What is not at its default, and does matter."""
    read = {"r", "lora_alpha", "rank_pattern", "alpha_pattern"} | NO_MATTER
    found = {}
    for one in fields(config):
        usual = one.default if one.default_factory is MISSING else one.default_factory()
        if one.init and one.name not in read and (value := vars(config)[one.name]) != usual:
            found[one.name] = value
    return found


def _ours(where: str, key: str, value: Any) -> dict[str, Any]:
    """One option, in our words. Raises UserError where there are none."""
    if key == "modules_to_save" and not isinstance(value, str) and set(value) <= set(HEADS):
        return {}
    if key == "target_modules":
        return {"targets": _targets(where, value)}
    if key == "layers_to_transform":
        return {"blocks": [value] if isinstance(value, int) else list(value)}
    if key == "init_lora_weights" and value in INITS:
        return {"init": value}
    ours = next((name for name in KEYS.get(key, ()) if name in LoRA.model_fields and name != "init"), None)
    if ours is None:
        raise UserError(f"{where}={shown(value)} has no word here: leave it out, or see mp.LoRA for what there is")
    return {ours: value}


def _targets(where: str, value: Any) -> str | list[str]:
    if value == "all-linear":
        return "all-linear"
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise UserError(
            f"{where}: {shown(value)} is a pattern; say the layers by their names, such as targets=['q', 'v'] or "
            "'all-linear'"
        )
    return [VALUES.get(name, name) for name in sorted(value)]
