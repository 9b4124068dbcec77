"""What there is to say of how one method's adapters lie on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_peft.core.border import Tensors


@dataclass(frozen=True)
class Format:
    """How one method's adapters lie on disk.

    Attributes:
        peft_type: as ``adapter_config.json`` has it.
        pack: a method and a model's tensors to the method's part of the configuration and the tensors to store.
        unpack: the inverse for the tensors; raises ValueError where they are not the method's.
        apart: the tensors with q, k and v on layers of their own, which ``pack`` takes too. Raises UserError where that
            is another adapter.
        from_peft: reads what PEFT wrote; None where PEFT has no such method.
        notes: what of a method, whose tensors a model names so, PEFT passes over in silence, a sentence each.
    """

    peft_type: str
    pack: Callable[[Any, Tensors], tuple[dict[str, Any], Tensors]]
    unpack: Callable[[Any, Tensors], Tensors]
    from_peft: Callable[[dict[str, Any], Tensors, Path], tuple[Any, Tensors]] | None = None
    apart: Callable[[Any, Tensors], Tensors] = lambda method, tensors: tensors
    notes: Callable[[Any, Tensors], list[str]] = lambda method, tensors: []
