"""What is wrong with an experiment, in words for the person who wrote it."""

from __future__ import annotations

from pydantic import ValidationError

from mlx_peft.config.methods import OPTIONS
from mlx_peft.config.schema import Experiment
from mlx_peft.core import problems
from mlx_peft.core.sections import Place


def explain(error: ValidationError, root: type = Experiment) -> dict[Place, str]:
    """One message for each place that is wrong; a name that is an option of a method is said to be one."""
    return problems.explain(error, root, OPTIONS)
