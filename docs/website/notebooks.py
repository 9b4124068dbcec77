"""A page of the site for each notebook: its cells as text and code. What they print is not stored with them."""

from __future__ import annotations

import json
from pathlib import Path

from places import ROOT

FILES = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def page(path: Path) -> str:
    """A notebook as Markdown, and a link to the file itself."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = [("".join(cell["source"]), cell["cell_type"]) for cell in cells]
    parts = [text if kind == "markdown" else f"```python\n{text}\n```" for text, kind in texts]
    parts.insert(1, f'<a href="../{path.name}" download>{path.name}</a> is this page as a notebook.')
    return "\n\n".join(parts)
