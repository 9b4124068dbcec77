"""What few bits cost: accuracy against the bits of a weight."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlx_peft.config.naming import label, short
from mlx_peft.report.figures.layout import (
    NAMED,
    POINTS,
    SMALL,
    Drawing,
    across,
    legend,
    legend_lines,
    look,
    panels,
    titled,
)
from mlx_peft.report.groups import Group, Spread
from mlx_peft.report.study import Study
from mlx_peft.training.run import FREE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FLOAT = 32
"""A weight that is in no codes has so many bits."""
CODES = ("quantize", "qat")
"""Sections of a configuration that say how weights are in codes."""
MOST_SETS = 12
Line = dict[int, Spread]


def bits(study: Study) -> Drawing | None:
    """A line for each configuration that was made with several numbers of bits; None where there is none."""
    found = {at: lines for at in range(len(study.board.columns)) if (lines := _lines(study, at))}
    if not found:
        return None
    caption = (
        "Accuracy against the bits of a weight; float: in no codes. Bars are one standard deviation over seeds. Of "
        "what was made of a run afterwards, the run itself stands at float."
    )
    return Drawing(
        "bits", caption, lambda width: _draw(study, dict([*found.items()][:MOST_SETS]), width), len(found) > 1
    )


def _lines(study: Study, at: int) -> dict[str, Line]:
    """Of a data set: by what is the same in all points of a line."""
    groups = [group for (_, place), group in study.board.cells.items() if place == at]
    runs = {run.result.get("run_id"): group for group in groups for run in group.runs}
    families: dict[tuple[str, ...], dict[int, Group]] = {}
    for group in groups:
        run = group.runs[0]
        step = run.value("step") or {}
        kind = "simulated" if step.get("simulate") else "in codes afterwards" if step.get("quantize") else ""
        if step and not kind:
            continue
        family = families.setdefault((str(run.value("method")), _rest(group), kind, _rounding(step)), {})
        family.setdefault(run.value("protocol.bits") or FLOAT, group)
        if kind and (parent := runs.get(run.result.get("of"))) is not None:
            family.setdefault(parent.runs[0].value("protocol.bits") or FLOAT, parent)
    whole = {key: members for key, members in families.items() if len(members) > 1}
    names = _names(whole)
    key = study.board.columns[at].key
    return {
        names[family]: {
            number: score for number, group in sorted(members.items()) if (score := group.spread(key)) is not None
        }
        for family, members in whole.items()
    }


def _rest(group: Group) -> str:
    """All settings but the seed and those of codes, as one text."""
    settings = group.runs[0].settings
    return json.dumps({key: settings[key] for key in sorted(settings) if not _apart(key)})


def _apart(key: str) -> bool:
    return key in (*FREE, "seed") or key.split(".")[0] in CODES


def _rounding(step: dict[str, object]) -> str:
    """What a simulation does besides rounding weights: ``activations 8``."""
    simulated = step.get("simulate")
    return f"activations {simulated.get('activations')}" if isinstance(simulated, dict) else ""


def _names(families: dict[tuple[str, ...], dict[int, Group]]) -> dict[tuple[str, ...], str]:
    """By method, the settings in which the lines of one method differ, and what was done afterwards."""
    settings = {family: next(iter(members.values())).runs[0].settings for family, members in families.items()}
    names = {}
    for family in families:
        alike = [settings[other] for other in families if other[0] == family[0]]
        keys = [key for key in settings[family] if not _apart(key) and len({str(one.get(key)) for one in alike}) > 1]
        said = [f"{short(key, keys)}={label(settings[family][key])}" for key in keys]
        names[family] = " ".join(filter(None, (family[0], *said, family[2], family[3])))
    return names


def _draw(study: Study, sets: dict[int, dict[str, Line]], width: float) -> Figure:
    names = [*dict.fromkeys(name for lines in sets.values() for name in lines)][:NAMED]
    _, below = legend_lines(names, width)
    figure, grid = panels(len(sets), width, 2.3, below)
    for axes, (at, lines) in zip(grid, sets.items(), strict=True):
        _panel(axes, lines, names)
        axes.set_ylabel(study.board.columns[at].heading, fontsize=POINTS)
        axes.set_xlabel("bits of a weight", fontsize=POINTS)
        if len(study.board.columns) > 1:
            titled(axes, study.board.columns[at].dataset, width / across(len(sets), width) - 0.5)
    legend(figure, names, width, lines=True)
    return figure


def _panel(axes: Axes, lines: dict[str, Line], names: Sequence[str]) -> None:
    places = sorted({number for line in lines.values() for number in line})
    for number, name in enumerate(names):
        if (line := lines.get(name)) is None:
            continue
        aside = 0.16 * (number / max(1, len(names) - 1) - 0.5) if len(names) > 1 else 0.0
        axes.errorbar(
            [places.index(one) + aside for one in line],
            [100 * score.mean for score in line.values()],
            [100 * (score.deviation or 0.0) for score in line.values()],
            elinewidth=0.7,
            capsize=1.5,
            **look(number, lines=True),
        )
    axes.set_xticks(range(len(places)), [str(one) if one < FLOAT else "float" for one in places], fontsize=SMALL)
    axes.set_xlim(-0.4, len(places) - 0.6)
    axes.ticklabel_format(axis="y", useOffset=False)
