"""The import contracts hold: each is broken by an import that it forbids, put into a copy of the sources.

A contract that lets everything pass is kept as well as one that is obeyed, so that ``make lint`` alone proves little.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with import-linter

ROOT = Path(__file__).parents[2]
PACKAGES = ("mlx_peft", "torch_ref", "convert")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
CONTRACTS = {contract["name"]: contract for contract in SETTINGS["importlinter"]["contracts"]}

DOWNHILL = "Each room imports only the rooms below it"
NO_HTTP = "Only the server speaks HTTP"
NO_IMAGES = "No backend reads an image: the library hands it pixels"
NO_FRAMEWORK = "What no framework is needed for imports none"
NO_TORCH = "The MLX backend imports no PyTorch"
NO_MLX = "torch_ref needs no MLX"
NO_TOOLS = "What only PyTorch has stands on its backend, not the backend on it"

FORBIDDEN = [
    (DOWNHILL, "mlx_peft.backend.methods.linear", "mlx_peft.training.fit"),
    (DOWNHILL, "torch_ref.methods.linear", "mlx_peft.training.fit"),
    (DOWNHILL, "convert.files", "mlx_peft.backend.models.vit"),
    (DOWNHILL, "mlx_peft.data.pipeline", "convert.files"),
    (DOWNHILL, "mlx_peft.core.errors", "mlx_peft.vit.registry"),
    (DOWNHILL, "mlx_peft.report.tables", "mlx_peft.cli.common"),
    (DOWNHILL, "mlx_peft.report.tables", "mlx_peft.serve.settings"),
    (DOWNHILL, "mlx_peft.serve.engine", "mlx_peft.cli.common"),
    (NO_HTTP, "mlx_peft.studies.sweep", "fastapi"),
    (NO_HTTP, "mlx_peft.artifacts.answering", "starlette.requests"),
    (NO_IMAGES, "mlx_peft.backend.training", "mlx_peft.data.pipeline"),
    (NO_IMAGES, "torch_ref.models.preprocess", "PIL.Image"),
    (NO_IMAGES, "mlx_peft.library.library", "mlx_peft.data.given"),
    (NO_IMAGES, "mlx_peft.library.answering", "mlx_peft.data.pipeline"),
    (NO_FRAMEWORK, "mlx_peft.training.fit", "mlx.core"),
    (NO_FRAMEWORK, "mlx_peft.data.pipeline", "torch"),
    (NO_FRAMEWORK, "convert.files", "timm"),
    (NO_FRAMEWORK, "mlx_peft.artifacts.load", "torch_ref.library"),
    (NO_FRAMEWORK, "mlx_peft.serve.served", "torch_ref.library"),
    (NO_TORCH, "mlx_peft.backend.training", "torch"),
    (NO_TORCH, "mlx_peft.backend.methods.lora", "peft"),
    (NO_MLX, "torch_ref.tools.registry", "mlx.core"),
    (NO_MLX, "torch_ref.models.vit", "mlx_peft.backend.models.vit"),
    (NO_TOOLS, "torch_ref.models.vit", "torch_ref.tools.registry"),
]
"""A contract, a module, and what it must not import there. Several imports of one contract are tried in one run."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources and their contracts, without a line of the repository's own being touched."""
    folder = tmp_path_factory.mktemp("house")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(folder: Path) -> tuple[dict[str, str | None], str]:
    """What ``lint-imports`` finds there: of each contract, KEPT or BROKEN; and all that it prints."""
    command = [Path(sysconfig.get_path("scripts")) / "lint-imports", "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    output = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True).stdout
    answers = {name: re.search(f"^{re.escape(name)} (KEPT|BROKEN)", output, re.MULTILINE) for name in CONTRACTS}
    return {name: answer and answer[1] for name, answer in answers.items()}, output


def test_the_sources_as_they_are_break_no_contract(copy):
    assert lint(copy)[0] == dict.fromkeys(CONTRACTS, "KEPT")


def test_every_contract_has_an_import_that_breaks_it():
    assert {name for name, _, _ in FORBIDDEN} == set(CONTRACTS)


@pytest.mark.parametrize(
    "contracts",
    [
        pytest.param([*CONTRACTS], id="all at once"),
        *(pytest.param([name], id=name, marks=pytest.mark.slow) for name in CONTRACTS),
    ],
)
def test_a_forbidden_import_breaks_its_contract(copy, contracts):
    """Inside a function too, where it hides from a reader and from whoever only imports the module."""
    imports = [(name, importer, imported) for name, importer, imported in FORBIDDEN if name in contracts]
    before = {}
    try:
        for _, importer, imported in imports:
            file = copy.joinpath(*importer.split(".")).with_suffix(".py")
            before.setdefault(file, file.read_text())
            file.write_text(f"{file.read_text()}\n\ndef hidden() -> None:\n    import {imported}\n")
        answers, output = lint(copy)
    finally:
        for file, text in before.items():
            file.write_text(text)
    assert {answers[name] for name in contracts} == {"BROKEN"}
    _, *parts = re.split(r"\n(.+)\n-+\n", output.partition("Broken contracts")[2])
    broken = dict(zip(parts[::2], parts[1::2], strict=True))
    for name, importer, imported in imports:
        # A module of another's package is printed as that package.
        assert re.search(rf"{re.escape(importer)} -> ({re.escape(imported)}|{imported.split('.')[0]}) ", broken[name])


def test_every_room_stands_in_the_contracts():
    """A new package of mlx_peft has its floor, and imports no framework unless it is the MLX backend."""
    rooms = {f"mlx_peft.{file.parent.name}" for file in (ROOT / "mlx_peft").glob("*/__init__.py")} | {"convert"}
    layers = {room.strip() for layer in CONTRACTS[DOWNHILL]["layers"] for room in layer.split("|")}
    assert layers == rooms | {"torch_ref"}
    assert {*CONTRACTS[NO_FRAMEWORK]["source_modules"]} == rooms - {"mlx_peft.backend"}


def test_every_module_of_the_torch_backend_is_kept_from_the_tools():
    """Those that are started or imported by a person stand on the commands and on the backend, and are left out."""
    modules = {f"torch_ref.{path.stem}" for path in (ROOT / "torch_ref").iterdir() if not path.name.startswith("_")}
    assert {*CONTRACTS[NO_TOOLS]["source_modules"]} == modules - {"torch_ref.tools"}


def test_types_are_strict_wherever_no_framework_is_imported():
    assert SETTINGS["mypy"]["strict"]
    assert {*SETTINGS["mypy"]["packages"]} >= {*CONTRACTS[NO_FRAMEWORK]["source_modules"]}
