"""One hostile value put into a document: of JSON, YAML, lines, tables, and of what stands in a safetensors file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hostile import changed, pick, text


def header(path: Path) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's header, without the digest that would refuse any other, and its data."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8:end])
    entries.get("__metadata__", {}).pop("digest", None)
    return entries, raw[end:]


def write_header(path: Path, entries: str, data: bytes) -> None:
    encoded = entries.encode("utf-8", "replace")
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def in_json(path: Path, rng: np.random.Generator) -> None:
    path.write_text(text(changed(json.loads(path.read_text("utf-8")), rng), rng), "utf-8", "replace")


def in_yaml(path: Path, rng: np.random.Generator) -> None:
    path.write_text(text(changed(yaml.safe_load(path.read_text("utf-8")), rng), rng), "utf-8", "replace")


def in_lines(path: Path, rng: np.random.Generator) -> None:
    """One line of a file of JSON lines."""
    lines = path.read_text("utf-8").splitlines()
    number = int(rng.integers(len(lines)))
    lines[number] = text(changed(json.loads(lines[number]), rng), rng)
    path.write_text("\n".join(lines) + "\n", "utf-8", "replace")


def in_header(path: Path, rng: np.random.Generator) -> None:
    entries, data = header(path)
    write_header(path, text(changed(entries, rng), rng), data)


def in_metadata(path: Path, rng: np.random.Generator) -> None:
    """The JSON text that stands in the metadata: an adapter's description, a checkpoint's facts."""
    entries, data = header(path)
    for key, value in entries.get("__metadata__", {}).items():
        entries["__metadata__"][key] = text(changed(json.loads(value), rng), rng).encode("utf-8", "replace").decode()
    write_header(path, json.dumps(entries), data)


def in_table(path: Path, rng: np.random.Generator) -> None:
    """One cell of a table, or of a list of files and labels."""
    mark = "," if path.suffix == ".csv" else " "
    lines = path.read_text("utf-8").splitlines()
    number = int(rng.integers(len(lines)))
    cells = lines[number].split(mark)
    cells[int(rng.integers(len(cells)))] = text(changed("x", rng)).strip('"')
    lines[number] = mark.join(cells)
    path.write_text("\n".join(pick(rng, (lines, lines * 2, lines[:1], lines[1:]))) + "\n", "utf-8", "replace")
