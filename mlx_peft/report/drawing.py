"""What the pictures share: text that fits where it stands, colours, and their bytes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mlx_peft.core.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Okabe and Ito's palette, told apart with any colour vision; the order repeats with other dashes and marks.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
MARKS = ("o", "s", "^", "D", "v", "P")


def style(index: int) -> dict[str, Any]:
    """How the line of a number is drawn, so that it is told from the others."""
    turn, colour = divmod(index, len(COLOURS))
    return {
        "color": COLOURS[colour],
        "linestyle": DASHES[turn % len(DASHES)],
        "marker": MARKS[turn % len(MARKS)],
    }


@lru_cache(4096)  # the names of methods stand in every figure
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


def pictures(figure: Figure, dpi: int) -> dict[str, bytes]:
    """A figure for the screen and for a paper, by the ending of the file's name."""
    laid_out(figure, dpi)
    return {".png": png(figure, dpi), ".pdf": pdf(figure, dpi)}


def laid_out(figure: Figure, dpi: int) -> None:
    """Puts everything where it stands, once: a figure with a layout engine is drawn twice for each file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if (engine := figure.get_layout_engine()) is None:
        return
    FigureCanvasAgg(figure)
    before, figure.dpi = figure.dpi, dpi  # letters are hinted to whole dots
    with _any_script():
        engine.execute(figure)
    figure.dpi = before
    figure.set_layout_engine(None)


def pdf(figure: Figure, dpi: int) -> bytes:
    """A figure as PDF, its letters as letters, what is an image in it with so many dots an inch."""
    from matplotlib import rc_context

    file = io.BytesIO()
    with _any_script(), rc_context({"pdf.fonttype": 42}):
        figure.savefig(file, dpi=dpi, format="pdf", metadata={"Creator": None, "Producer": None, "CreationDate": None})
    return file.getvalue()


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
