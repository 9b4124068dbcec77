"""Files of some names are found at any depth, in one walk, and through no link."""

from __future__ import annotations

from pathlib import Path

from mlx_peft.report.looking import below


def test_each_name_has_its_paths_sorted(tmp_path: Path) -> None:
    for place in ("b", "a/deep", "a"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "one").touch()
    (tmp_path / "a" / "two").mkdir()
    (tmp_path / "around").symlink_to(tmp_path)
    ones, twos, none = below(tmp_path, "one", "two", "three")
    assert ones == sorted(tmp_path / place / "one" for place in ("a", "a/deep", "b"))
    assert twos == [tmp_path / "a" / "two"], "a folder of that name too"
    assert none == []
    assert below(tmp_path / "nowhere", "one") == ([],)
