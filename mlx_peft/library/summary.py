"""What of a model is trained, as a value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlx_peft.core.border import Parameters
from mlx_peft.vit.parameters import is_head

BLOCK = re.compile(r"^blocks\.\d+\.")


@dataclass(frozen=True, repr=False)
class Summary:
    """How many of a model's numbers are trained, and where they are.

    Attributes:
        method: what it is trained by; None: it has no method, and whatever it has is trained.
        parts: the numbers that are trained, by layer, alike in every block: ``{"blocks.*.attn.qkv": 36864, ...}``.
        head: those of the classifier.
        total: the numbers that there are.
    """

    method: str | None
    parts: Mapping[str, int]
    head: int
    total: int

    @property
    def trainable(self) -> int:
        """The numbers that are trained, head and all."""
        return sum(self.parts.values())

    @property
    def share(self) -> float:
        """The part of the numbers that is trained, from 0 to 1."""
        return self.trainable / self.total

    def __repr__(self) -> str:
        share = f"{100 * self.share:.2f} %"
        lines = [f"{self.method or 'no method'}: {self.trainable:,} of {self.total:,} parameters are trained ({share})"]
        width, digits = max(map(len, self.parts), default=0), len(f"{self.trainable:,}")
        lines += [f"  {part:<{width}}  {count:>{digits},}" for part, count in self.parts.items()]
        return "\n".join(lines)


def summarised(method: str | None, sizes: Mapping[str, int], parameters: Parameters) -> Summary:
    """The summary of a model.

    Args:
        method: its name.
        sizes: of what is trained, by parameter name.
        parameters: all counts.
    """
    parts: dict[str, int] = {}
    for name, size in sizes.items():
        part = "head" if is_head(name) else BLOCK.sub("blocks.*.", name).rpartition(".")[0] or name
        part = part.removesuffix(".base_layer")
        parts[part] = parts.get(part, 0) + size
    return Summary(method, parts, parameters.head, parameters.total)
