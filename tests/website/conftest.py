"""The modules of the site, which MkDocs finds in their folder, as it does."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "docs/website"))
