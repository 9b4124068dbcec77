"""Where a run found what its configuration names, and where that may be now that one of them was moved."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, PlainSerializer

from mlx_peft.config import files, yaml_io
from mlx_peft.config.schema import Data, Experiment
from mlx_peft.config.section import Section
from mlx_peft.core.errors import UserError, shown
from mlx_peft.core.problems import validated
from mlx_peft.training.run import RunFolder

COMMENT = (
    "# Where the run found these, and when it looked: no part of the experiment, and nobody needs to keep it right."
)


HOME = "~"
"""So a path begins in the file that lies in the home folder: a run is given to others, and its name is the user's."""


def _whole(path: str) -> str:
    whole = os.path.expanduser(path) if path == HOME or path.startswith(f"{HOME}/") else path
    if not os.path.isabs(whole):
        raise ValueError(f"should be a whole path, from the root on, not {shown(path)}")
    return whole


def _without_home(path: str) -> str:
    homes = [os.path.expanduser(HOME), os.path.realpath(os.path.expanduser(HOME))]
    within = [home for home in homes if os.path.dirname(home) != home and Path(path).is_relative_to(home)]
    return os.path.join(HOME, *Path(path).relative_to(within[0]).parts) if within else path


Whole = Annotated[str, AfterValidator(_whole), PlainSerializer(_without_home)]
"""A path from the root on; in the file, of one in the home folder, from there on."""


class Start(Section):
    """An adapter whose tensors a run began with."""

    adapter: Whole
    sha256: str


class Found(Section):
    """What ``config.yaml`` says under ``found``: paths on the machine that trained, which decide nothing."""

    run: Whole
    home: str | None = None
    """The home folder, as earlier versions wrote it, and whole paths with it."""
    data: Whole
    weights: Whole | None = None
    """None where they are the hub's, or this package's, or drawn."""
    base_sha256: str
    """What tells the weights from all others, wherever they lie: see ``convert.base.digest_of``."""
    start: Start | None = None

    @classmethod
    def now(cls, run: Path, here: Experiment, base_sha256: str, start: Start | None) -> Found:
        """Of an experiment whose paths are those that were opened."""
        weights = os.path.abspath(os.path.expanduser(here.model.weights)) if here.model.is_local else None
        return cls(
            run=os.path.abspath(run),
            data=os.path.abspath(here.data.root),
            weights=weights,
            base_sha256=base_sha256,
            start=start,
        )


def written(experiment: Experiment, found: Found) -> str:
    """The text of a run's ``config.yaml``: what the user wrote, every default with it, and what it was resolved to.

    Paths that are no UTF-8 cannot be written in YAML: what was found is left out then.
    """
    section = yaml_io.write({files.FOUND: found.model_dump(mode="json", exclude_none=True)})
    paths = (found.run, found.data, found.weights or "", found.start.adapter if found.start else "")
    try:
        "".join(paths).encode()
    except UnicodeEncodeError:
        return files.dump(experiment)
    return f"{files.dump(experiment)}{COMMENT}\n{section}"


def read_found(run: RunFolder) -> Found | None:
    """What a run found; None of one that does not say so. Raises UserError where ``config.yaml`` is damaged."""
    if not run.config.exists():
        return None
    run.check_sum(run.config)
    section = yaml_io.parse(files.text(run.config), str(run.config)).values.get(files.FOUND)
    return None if section is None else validated(Found, f"{run.config}: {files.FOUND}", section)


def candidates(named: str, run: Path, found: Found | None, what: Literal["data", "weights"]) -> list[Path]:
    """Where a path may lead now, likeliest first, whether or not anything is there; each place once.

    Seen from the run as it was when it trained, which is right where both were moved together; where it was found;
    likewise in the home folder of whoever asks; as it was written, from here and from the run; beside the run.

    Args:
        named: the path as it was written.
        run: the folder of the run, or of an adapter without one, as it is now.
        found: what it found; None where it does not say so.
        what: the path is of.
    """
    path = Path(os.path.expanduser(named))
    places: list[Path] = []
    recorded = None if found is None else {"data": found.data, "weights": found.weights}[what]
    if found is not None and recorded is not None:
        places += [Path(os.path.normpath(run / os.path.relpath(recorded, found.run))), Path(recorded)]
        if found.home is not None and Path(recorded).is_relative_to(found.home):
            places.append(Path(os.path.expanduser(HOME)) / Path(recorded).relative_to(found.home))
    places += [path, run / path, run.parent / path, run / path.name, run.parent / path.name]
    return list({os.path.abspath(place): place for place in places}.values())


def data_here(data: Data, run: RunFolder, found: Found | None) -> Data:
    """A run's images as they lie now; as it was written where nothing is to be seen of them."""
    places = candidates(str(data.root), run.path, found, "data")
    there = next((place for place in places if os.path.exists(place)), data.root)
    return data.model_copy(update={"root": there})


@contextmanager
def remembered(data: Data, found: Found | None) -> Iterator[None]:
    """Says of images that the block does not find where they were when the run trained, and how they are named."""
    try:
        yield
    except UserError as error:
        if found is None or os.path.exists(data.root):
            raise
        raise UserError(
            f"{error}\nthe run found its images in {found.data}: say where they are now, data.root=FOLDER"
        ) from error


def beside(path: Path, folder: Path | None) -> Path:
    """A path as it was written, or where nothing is there, as it would be from a folder."""
    return path if folder is None or os.path.exists(path) or not os.path.exists(folder / path) else folder / path
