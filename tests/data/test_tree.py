"""A folder listed: what links lead to is found out for each folder, not for each link."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_peft.data.tree import scan


def linked(root: Path, inside: Path) -> None:
    """Two hundred links to images, a link to a link, and links out of the root."""
    inside.mkdir(parents=True)
    (inside / "image.png").touch()
    (root / "ant").mkdir()
    for number in range(200):
        (root / "ant" / f"{number:03}.png").symlink_to(inside / "image.png")
    (root / "ant" / "again.png").symlink_to("000.png")
    outside = root.parent / "outside.png"
    outside.touch()
    (root / "ant" / "out.png").symlink_to(outside)
    (root / "ant" / "out, by a link in it.png").symlink_to(root / "ant" / "out.png")
    (root / "ant" / "out, by a folder.png").symlink_to(inside / ".." / ".." / ".." / "outside.png")


def test_links_to_images_cost_no_look_at_every_folder_around_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    linked(root, root / "source" / "deep")
    resolved: list[Path] = []
    resolve = Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda path, strict=False: resolved.append(path) or resolve(path, strict))
    found = scan(root).folders["ant"]
    assert len(resolved) < 10
    assert len(found.images) == 201
    assert "again.png" in found.images
    assert sorted(found.links) == ["out, by a folder.png", "out, by a link in it.png", "out.png"]
