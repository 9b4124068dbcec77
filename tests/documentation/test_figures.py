"""Figures that no command prints are arithmetic, which is made again here."""

from __future__ import annotations

import math
import re

from documentation.snippets import ROOT

from mlx_peft.config import files, recipes
from mlx_peft.vit import registry, shapes

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()


def test_the_tutorial_knows_how_much_is_fetched() -> None:
    (recipe,) = re.findall(r"mlx-peft cp (\S+) my\.yaml", TUTORIAL)
    entry = registry.find(files.load(recipes.find(recipe)).model.name)
    numbers = sum(map(math.prod, shapes.shapes(entry.architecture, entry.num_classes).values()))
    (millions, megabytes), *_ = re.findall(r"(\d+) million numbers of 4 bytes, (\d+) MB", TUTORIAL)
    assert (round(numbers / 1e6), round(numbers * 4 / 1e6)) == (int(millions), int(megabytes))


def test_the_tutorial_knows_how_large_its_model_is() -> None:
    (recipe,) = re.findall(r"mlx-peft cp (\S+) my\.yaml", TUTORIAL)
    architecture = registry.find(files.load(recipes.find(recipe)).model.name).architecture
    numbers = sum(map(math.prod, shapes.shapes(architecture, 0).values()))
    assert f"a ViT-S of {numbers / 1e6:.0f} million parameters" in TUTORIAL
