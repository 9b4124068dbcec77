"""``data check``: what a data set really holds."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_peft.cli import completing
from mlx_peft.cli.common import AsJson, Overrides, check_apart, check_file, echo, echo_json
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted, printable

if TYPE_CHECKING:
    from mlx_peft.config.schema import Data

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A data set's name: see `ls datasets`.",
        show_default=False,
        autocompletion=completing.datasets,
    ),
]
TABLE = 60
"""Of more classes than these only the extremes are printed; --json has all."""

MOST_PRINTED = 10
"""So many broken images, and pairs of each kind, are printed."""


def check(
    name: Name,
    overrides: Overrides = None,
    sheet: Annotated[Path, typer.Option(metavar="FILE.png", help="Where the contact sheet goes.")] = Path(
        "contact-sheet.png"
    ),
    as_json: AsJson = False,
) -> None:
    """Count, measure and compare every image of a data set, and draw some of each class.

    KEY=VALUE are those of an experiment's data section: root=photos variant=64 split.val=0.2. The exit status is 1
    where an image is broken or in two splits; near-duplicates are candidates for your own eyes.
    """
    config = data_section(name, overrides or [])
    check_file("--sheet", sheet)
    check_apart("--sheet", sheet, config.root)

    from mlx_peft.cli.progress import watch
    from mlx_peft.core.writing import write_whole
    from mlx_peft.data import find
    from mlx_peft.data.check import survey
    from mlx_peft.data.hands import number
    from mlx_peft.data.opening import open_entry
    from mlx_peft.data.sheet import contact_sheet

    with watch() as progress:
        dataset = open_entry(find(config.name), config, decode=False, watch=progress.opening)
        found = survey(dataset, number(config.threads), config, progress.opening)
    if as_json:
        echo_json(found.report())
    else:
        echo("\n".join(lines(found.report(MOST_PRINTED))))
    picture = io.BytesIO()
    contact_sheet(found).save(picture, "PNG")
    write_whole(sheet, picture.getvalue())
    echo(sheet, err=True)
    if not found.sound:
        raise typer.Exit(1)


def data_section(name: str, overrides: list[str]) -> Data:
    """The data section that a name and ``key=value`` describe. Raises UserError with all that is wrong."""
    from pydantic import ValidationError

    from mlx_peft.config import files, problems
    from mlx_peft.config.schema import Data
    from mlx_peft.core.problems import in_lines

    document = files.override(overrides)
    try:
        return Data.model_validate_json(json.dumps({"name": name} | document.values), strict=True)
    except ValidationError as error:
        found = in_lines(problems.explain(error, Data), document.where)
        raise UserError(f"not a valid data section:\n{found}") from None


def lines(report: dict[str, Any]) -> list[str]:
    """The findings for a person, a line each: what a terminal would obey in a name is written out."""
    sizes = ", ".join(f"{split['size']:,} {name}" for name, split in report["splits"].items())
    text = [f"{report['name']}: {sizes}; {counted(len(report['classes']), 'class')}", *_class_table(report), ""]
    for side in ("height", "width"):
        if spread := report[side]:
            text.append(f"{side}: {spread['min']} to {spread['max']}, median {spread['median']}")
    text.append(f"different sizes: {report['different_sizes']:,}")
    for key in ("channels", "files"):
        text.append(f"{key}: " + ", ".join(f"{count:,} {kind}" for kind, count in report[key].items() if count))
    text.append(f"broken: {report['broken']['count']:,}")
    text += [f"  {image['split']}: {image['reason']}" for image in report["broken"]["images"]]
    text.append(f"copies of an image, in any split: {report['copies']:,}")
    for key, what in PAIRS.items():
        text.append(f"{what}: {report[key]['count']:,}")
        text += [f"  {_image(later)} and {_image(earlier)}" for later, earlier in report[key]["pairs"]]
    return [printable(line) for line in text] + [f"note: {printable(note)}" for note in report["notes"]]


PAIRS = {
    "equal_across_splits": "images that are in an earlier split too",
    "equal_with_another_label": "copies with another label",
    "near_across_splits": "images nearly equal to one of an earlier split",
}
"""The kinds of pairs, and the words for them."""


def _image(image: dict[str, str]) -> str:
    return f"{image['split']}: {image['image']} ({image['class']})"


def _class_table(report: dict[str, Any]) -> list[str]:
    splits = report["splits"]
    if len(report["classes"]) > TABLE:
        counts = {name: split["by_class"].values() for name, split in splits.items()}
        return [f"images of a class: {min(c):,} to {max(c):,} {name}" for name, c in counts.items()]
    rows = [["class", *splits]]
    names = next(iter(splits.values()))["by_class"]  # and, where images may have several, of how many none
    rows += [[printable(name), *(f"{split['by_class'][name]:,}" for split in splits.values())] for name in names]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
