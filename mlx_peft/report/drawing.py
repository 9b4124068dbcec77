"""What the pictures share: text that fits where it stands, and their bytes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlx_peft.core.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def width(line: str, points: float) -> float:
    """Inches that a line of text takes in letters of that size, in the font of the pictures."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    with _any_script():
        drawn, _, _ = text_to_path.get_text_width_height_descent(line, FontProperties(size=points), False)
    return float(drawn) / 72


def fitted(line: str, inches: float, points: float) -> str:
    """The line, what is not seen in it written out, or as much of its beginning as fits, with an ellipsis."""
    line = printable(line)
    if width(line, points) <= inches:
        return line
    fits, too_long = 0, len(line)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if width(f"{line[:middle]}…", points) <= inches:
            fits = middle
        else:
            too_long = middle
    return f"{line[:fits]}…"


def png(figure: Figure, dpi: int) -> bytes:
    """A figure as PNG. Letters that the font lacks are drawn as boxes, without a warning for each."""
    file = io.BytesIO()
    with _any_script():
        figure.savefig(file, dpi=dpi, format="png", metadata={"Software": None})
    return file.getvalue()


@contextmanager
def _any_script() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        yield
