"""Which columns of a table hold images, labels, splits and groups: by their usual names, or as it is said."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError, suggest
from mlx_peft.data.names import folded, spelled

USUAL = {
    "image": (
        *("image", "path", "imagepath", "file", "filename", "img", "filepath", "imgpath", "imagefile"),
        *("imagename", "imgfile", "imgname", "imageid", "imageindex", "idcode", "isicid"),
    ),
    "label": (
        "label",
        "labels",
        "class",
        "target",
        "classname",
        "labelname",
        "targetname",
        "category",
        "diagnosis",
        "dx",
    ),
    "split": ("split", "subset"),
    "group": (
        *(
            "group",
            "patient",
            "patientid",
            "groupid",
            "patientno",
            "patientnr",
            "patientnumber",
            "patientname",
            "patientkey",
        ),
        *("subject", "subjectid", "subjectno", "participant", "participantid", "person", "personid"),
        *("individual", "individualid", "donor", "donorid", "animalid", "caseid", "caseno", "casenumber"),
        *("studyinstanceuid", "studyuid", "studyid", "lesionid", "specimenid", "slideid"),
    ),
}
"""The usual names of the columns by their letters alone (``Patient ID`` is ``patientid``), tried in this order where
`data.columns` names none: of groups, a patient's before a lesion's."""

MAYBE_SPLIT = ("fold", "set", "partition", "phase", "usage")
"""Columns of these names hold splits or something else: not used unless they are named, and a note says so."""

MAYBE_GROUP = re.compile(
    "patient|subject|participant|person|individual|donor|animal|mouse|case|lesion|specimen|slide|study|series|visit"
    "|exam|accession|group|cluster|session|subj|video|scene|sequence|camera"
)
"""Columns with one of these in their names, by their letters alone, may say what belongs together."""

IDENTITY = frozenset(
    {"id", "uid", "uuid", "guid", "no", "nr", "num", "number", "code", "key", "name", "identifier"}
    | {"pid", "ptid", "mrn", "eid"}  # a patient's, a medical record's, UK Biobank's
)

NONE = "none"
"""It stands in `data.columns` for no column of splits or groups."""

DESCRIPTIONS = frozenset(
    {"age", "sex", "gender", "race", "weight", "height", "type", "status", "position", "date", "view"}
    | {"class", "label", "category", "target", "diagnosis", "dx", "split", "fold", "set"}
)
"""Columns of these names do not say who or what an image is of."""

SAMPLE, SAMPLED = 10_000, 1_000_000
"""So many rows of a table are looked at to tell what a column that is not used may hold, and so many cells of all such
columns: a table may have a thousand columns of numbers."""

LISTED = 20
"""A message names at most so many columns."""

FEW_AT_LEAST, FEW, MANY_VALUES = 1.5, 20, 10
"""A column of so few images a value, and of so many values, may say what belongs together."""


def column_of(heading: Sequence[str], what: str, wanted: str | None, where: object) -> str:
    """The column that is asked for, or the first of a usual name; "" where there is none of splits or groups, or NONE
    is asked for.

    Raises UserError where another is missing.
    """
    optional = what in ("split", "group")
    if wanted == NONE and optional:
        return ""
    if wanted is not None:
        named = {spelled(name): name for name in reversed(heading)}
        found = named.get(spelled(wanted).strip())
        if found is None:
            raise UserError(f"data.columns.{what}: there is no column {wanted!r} in {where}{suggest(wanted, heading)}")
        return found
    by_letters = {folded(name): name for name in reversed(heading)}
    found = next((by_letters[name] for name in USUAL[what] if name in by_letters), "")
    if not found and not optional:
        raise UserError(
            f"{where}: no column is called {' or '.join(USUAL[what][:3])}; there is {_listed(heading)}: "
            f"name it in data.columns.{what}"
        )
    return found


def _listed(heading: Sequence[str]) -> str:
    more = f" and {len(heading) - LISTED:,} more" if len(heading) > LISTED else ""
    return (", ".join(heading[:LISTED]) or "none") + more


def unused(
    heading: Sequence[str], used: Mapping[str, str], wanted: schema.Columns, sample: Mapping[str, Sequence[object]]
) -> tuple[str, ...]:
    """Notes about columns that may hold splits or groups, where none is known that does.

    used: the name of each kind's column, "" where there is none. sample: of the other columns, the first SAMPLE cells.
    """
    left = [name for name in heading if name not in used.values()]
    notes = []
    if not used["split"] and not wanted.split:
        for name in left:
            if folded(name) in MAYBE_SPLIT:
                notes.append(f"not used: column {name!r}; where it holds splits, set data.columns.split: {name}")
    if not used["group"] and not wanted.group:
        for name in left:
            if name in sample and _may_group(name, sample[name]):
                notes.append(
                    f"not used: column {name!r}; where images with the same value belong together (as a patient's do), "
                    f"set data.columns.group: {name}, so that no split parts them"
                )
    return tuple(notes)


def _may_group(name: str, cells: Sequence[object]) -> bool:
    """Whether a column may say which images belong together: some have the same value, and it is called like a patient,
    or has many values with few images each and is called like an identity or holds letters."""
    values = {str(cell).strip() for cell in cells} - {"", "None", "nan"}
    if not 2 <= len(values) < len(cells):
        return False
    words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", spelled(name))}
    if words & DESCRIPTIONS:
        return False
    if MAYBE_GROUP.search(folded(name)):
        return True
    many = len(values) >= MANY_VALUES and FEW_AT_LEAST * len(values) <= len(cells) <= FEW * len(values)
    return many and (bool(words & IDENTITY) or all(any(map(str.isalpha, value)) for value in values))


def no_group(row: str, column: str) -> UserError:
    """Of rows without one it is not known what they belong to; they are not all of one group."""
    return UserError(f"{row} has no {column!r}: fill it in, or set data.columns.group: {NONE}")
