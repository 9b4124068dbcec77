"""Sections are told from plain values, on every Python."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import Field

from mlx_peft.config.data import Cache, Split
from mlx_peft.core.sections import sections


@pytest.mark.parametrize(
    ("annotation", "found"),
    [
        (int, []),
        (list[int], []),
        (dict[str, int] | None, []),
        (tuple[float, float], []),
        (Any, []),
        (Split, [Split]),
        (Annotated[Split | Cache, Field()] | None, [Split, Cache]),
    ],
)
def test_an_annotation_has_its_sections(annotation: Any, found: list[type]) -> None:
    """In Python 3.10 ``list[int]`` passes for a class, and is none."""
    assert sections(annotation) == found
