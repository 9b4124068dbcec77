"""The critical-difference diagram: mean places over data sets, and which of them are too close to be told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlx_peft.report.drawing import fitted
from mlx_peft.report.figures.layout import SMALL, Drawing
from mlx_peft.report.significance import LEVEL
from mlx_peft.report.study import Study
from mlx_peft.report.verdicts import Standing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST, MOST = 3, 20
"""Of fewer methods there is no Friedman test; of more the best are drawn."""


def critical(study: Study) -> Drawing | None:
    """None of fewer than three methods, or of one data set."""
    found = study.standing
    if found is None or len(found.rows) < FEWEST:
        return None
    caption = (
        f"Mean places over {len(found.scores)} data sets, the best on the left. A bar joins methods that Nemenyi's "
        f"test after Friedman's (p = {found.friedman:.3g}) does not tell apart at {100 * LEVEL:g} % (Demšar 2006)."
    )
    return Drawing("critical-difference", caption, lambda width: _draw(found, width))


def _draw(found: Standing, width: float) -> Figure:
    import scikit_posthocs
    from matplotlib.figure import Figure
    from pandas import DataFrame

    best = sorted(found.rows, key=lambda row: found.places[row])[:MOST]
    names: dict[str, str] = {}
    for row in best:
        name = fitted(row, min(1.8, width / 3.2), SMALL)
        names[row] = f"{name}{' ' * sum(other.strip() == name for other in names.values())}"  # no two are alike
    scores = DataFrame(found.scores, columns=[*found.rows])
    alike = scikit_posthocs.posthoc_nemenyi_friedman(scores).loc[best, best].rename(index=names, columns=names)
    figure = Figure(figsize=(width, 0.75 + 0.13 * len(best)), layout="constrained")
    axes = figure.add_subplot()
    scikit_posthocs.critical_difference_diagram(
        {names[row]: found.places[row] for row in best},
        alike,
        ax=axes,
        alpha=LEVEL,
        label_fmt_left="{label} ({rank:.2g}) ",
        label_fmt_right=" ({rank:.2g}) {label}",
        label_props={"fontsize": SMALL, "parse_math": False},
        elbow_props={"linewidth": 0.8, "color": "#444444"},
        crossbar_props={"linewidth": 2.2, "color": "black"},
        marker_props={"s": 6, "color": "black"},
        text_h_margin=0.01,
    )
    axes.tick_params(labelsize=SMALL)
    return figure
