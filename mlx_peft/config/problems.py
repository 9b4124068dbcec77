"""What is wrong with a section, in words for the person who wrote it."""

from __future__ import annotations

from pydantic import ValidationError

from mlx_peft.config.words import Words
from mlx_peft.core import problems
from mlx_peft.core.sections import Place, dotted


def explain(error: ValidationError, root: type) -> dict[Place, str]:
    """One message for each place that is wrong; where others have another word for what was meant, ours is said."""
    return problems.explain(error, root, Words(root))


def in_a_line(error: ValidationError, root: type) -> str:
    """All that is wrong with a section that is no file's, as one clause."""
    return "; ".join(
        f"{dotted(place)}: {message}" if place else message for place, message in explain(error, root).items()
    )
