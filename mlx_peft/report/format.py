"""Measured numbers as a person reads them. None, which was not measured, is a dash."""

from __future__ import annotations

from collections.abc import Mapping

from mlx_peft.tasks.registry import figures, leading

MISSING = "–"


def headline(metrics: Mapping[str, float]) -> str:
    """The metric by which epochs are chosen: ``top-1 97.22 %``."""
    name, called = leading(metrics), figures()
    return f"{called[name]} {percent(metrics[name])} %" if name in called else f"{name} {metrics[name]:.4f}"


def percent(fraction: float | None) -> str:
    """``0.9722`` as ``97.22``, without the sign."""
    return MISSING if fraction is None else f"{100 * fraction:.2f}"


def count(number: int | None) -> str:
    """``41482`` as ``41,482``."""
    return MISSING if number is None else f"{number:,}"


def decimal(number: float | None, places: int = 1) -> str:
    return MISSING if number is None else f"{number:,.{places}f}"


def seconds(number: float | None) -> str:
    """``75.2`` as ``1 min 15 s``."""
    if number is None:
        return MISSING
    if number < 60:
        return f"{number:.1f} s"
    minutes, rest = divmod(round(number), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(number: int | None) -> str:
    """Bytes in the unit that suits them: ``1.5 GB`` is 1.5e9."""
    if number is None:
        return MISSING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} B"
