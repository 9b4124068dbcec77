"""The figures of a report, each where the runs have what it shows."""

from mlx_peft.report.figures.bits import bits
from mlx_peft.report.figures.critical import critical
from mlx_peft.report.figures.curves import learning
from mlx_peft.report.figures.heat import dealt, placings
from mlx_peft.report.figures.layout import SIZES, Drawing
from mlx_peft.report.figures.seeds import seeds
from mlx_peft.report.figures.tradeoffs import tradeoffs
from mlx_peft.report.study import Study

__all__ = ["SIZES", "Drawing", "drawings"]


def drawings(study: Study) -> list[Drawing]:
    """In the order in which a page has them."""
    single = (seeds, critical, placings, bits, dealt, learning)
    found = [one for make in single[:3] if (one := make(study)) is not None]
    found += tradeoffs(study)
    return found + [one for make in single[3:] if (one := make(study)) is not None]
