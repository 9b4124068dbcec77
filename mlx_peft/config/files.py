"""Experiment files: composed, overridden, checked with every error at once, and written back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mlx_peft.config import problems, structure, yaml_io
from mlx_peft.config.schema import Experiment
from mlx_peft.config.yaml_io import Document
from mlx_peft.core.bounds import must_be_usable
from mlx_peft.core.errors import Command, UserError, shown
from mlx_peft.core.problems import in_lines
from mlx_peft.core.sections import Place

MAX_FILES = 64
COMMAND_LINE = "command line"
FOUND = "found"
"""A run's ``config.yaml`` has a section of this name, which says where the run found what it names. It is passed
over."""


def load(
    path: Path,
    overrides: Iterable[str] = (),
    *,
    defaults: Mapping[str, Any] | None = None,
    checks: Mapping[str, Callable[[str], object]] | None = None,
) -> Experiment:
    """The experiment of a file.

    ``overrides`` are ``method.rank=16``, the value in YAML, and win over the file; ``defaults`` are values for where
    neither says anything. ``checks`` are tried on the text at a dotted path (``{"model.name": registry.find}``); what
    they raise as UserError joins the list. Raises UserError with all that is wrong, one ``path: message`` a line.
    """
    document = reduce(merged, [Document(dict(defaults or {}), {}), compose(path), override(overrides)])
    try:
        return resolve(document, checks)
    except UserError as error:
        raise UserError(f"{path} is not a valid experiment:\n{error}", command=error.command) from None


def resolve(document: Document, checks: Mapping[str, Callable[[str], object]] | None = None) -> Experiment:
    """The experiment that a document holds. Raises UserError with all that is wrong, one ``path: message`` a line."""
    values = structure.with_default_names(document.values)
    found: dict[Place, str] = {}
    command: Command | None = None
    experiment = None
    try:
        # JSON's strict mode takes lists for tuples and text for paths, but neither "8" nor true for a number.
        experiment = Experiment.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        found = problems.explain(error, Experiment)
    for dotted, check in (checks or {}).items():
        place = tuple(dotted.split("."))
        value = structure.value_at(values, place)
        if isinstance(value, str) and place not in found:
            try:
                check(value)
            except UserError as error:
                found[place] = str(error)
                command = command or error.command
    if found or experiment is None:
        raise UserError(in_lines(found, document.where), command=command)
    return experiment


def dump(experiment: Experiment) -> str:
    """The experiment as YAML, every default written out; ``load`` reads an equal one back."""
    return yaml_io.write(experiment.model_dump(mode="json"))


def compose(path: Path) -> Document:
    """A file put together from its ``base`` files, unchecked: the later wins, the file itself over all of them.

    ``base`` is a path, or a list of them, relative to the file that names them. Raises UserError on a file that cannot
    be read, a cycle, or more than ``MAX_FILES`` files.
    """
    documents: list[Document] = []
    _collect(path, (), documents)
    return reduce(merged, documents)


def override(assignments: Iterable[str]) -> Document:
    """``method.rank=16`` and its like as one document. The last of two for the same key counts.

    Raises UserError for what is no assignment, or is nested deeper or longer than a file may be.
    """
    values: dict[str, Any] = {}
    where: dict[Place, str] = {}
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        place = tuple(dotted.strip().split("."))
        if not equals or not all(place):
            raise UserError(f"{shown(assignment)} is not an override; write key=value, such as method.rank=16")
        if len(place) > yaml_io.MAX_DEPTH or len(assignment) > yaml_io.MAX_BYTES:
            raise UserError(
                f"override {shown(assignment)}: deeper than {yaml_io.MAX_DEPTH} keys, or longer than "
                f"{yaml_io.MAX_BYTES // 1024} KiB; the experiment has no such key"
            )
        node = values
        for key in place[:-1]:
            inner = node.get(key)
            node[key] = node = inner if isinstance(inner, dict) else {}
        node[place[-1]] = yaml_io.parse_value(text, f"override {shown(assignment)}")
        where[place] = COMMAND_LINE
    return Document(values, where)


def _collect(path: Path, inside: tuple[Path, ...], documents: list[Document]) -> None:
    """Appends the bases of a file in their order, each after its own, then the file."""
    must_be_usable(path)
    resolved = path.resolve()
    if resolved in inside:
        circle = " -> ".join(file.name for file in (*inside[inside.index(resolved) :], resolved))
        raise UserError(f"{path}: the base files form a cycle: {circle}")
    document = yaml_io.parse(text(path), str(path))
    document.values.pop(FOUND, None)
    bases = document.values.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{document.where[('base',)]}: base should be a file or a list of files")
    for base in bases:
        _collect(path.parent / base, (*inside, resolved), documents)
    documents.append(document)
    if len(documents) > MAX_FILES:
        raise UserError(f"{path}: composed of more than {MAX_FILES} files")


def text(path: Path) -> str:
    """What a file says. Raises UserError where it cannot be read, is no text, or is too large."""
    try:
        with path.open("rb") as file:
            content = file.read(yaml_io.MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    if len(content) > yaml_io.MAX_BYTES:
        raise UserError(f"{path}: larger than {yaml_io.MAX_BYTES // 1024} KiB, too large for an experiment")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None


def merged(below: Document, above: Document) -> Document:
    """One document over another: sections merge key by key, anything else is replaced."""
    kept = {place: source for place, source in below.where.items() if _list_of(place) not in above.where}
    return Document(_merge(below.values, above.values, ()), kept | above.where)


def _list_of(place: Place) -> Place | None:
    """The list that an item's place is in, since lists are replaced whole; None for what is in no list."""
    return next((place[:depth] for depth, key in enumerate(place) if isinstance(key, int)), None)


def _merge(below: dict[str, Any], above: dict[str, Any], place: Place) -> dict[str, Any]:
    """Sections merge key by key, anything else is replaced; a section that becomes another variant starts anew."""
    if structure.changes_variant(place, below, above):
        return above
    merged = dict(below)
    for key, value in above.items():
        old: Any = below.get(key)
        sections = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(old, value, (*place, key)) if sections else value
    return merged
