"""A notebook's page has all its cells, and leads to the notebook."""

from __future__ import annotations

import json
from pathlib import Path

import notebooks
import pytest


@pytest.mark.parametrize("path", notebooks.FILES, ids=lambda path: path.stem)
def test_a_page_has_every_cell_in_turn(path: Path) -> None:
    page, place = notebooks.page(path), 0
    for cell in json.loads(path.read_text())["cells"]:
        place = page.index("".join(cell["source"]), place) + 1
    assert page.startswith("# ") and page.count("```python") == page.count("```") / 2
    assert f'href="../{path.name}"' in page
