"""No list, whatever it says, leads to a file outside of its set."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_peft.core.errors import UserError
from mlx_peft.data import lists
from mlx_peft.data.lists import images_in, integer, labels_of, read_rows, read_text


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file at two depths, links inside and out, and files of the same names around it."""
    outer = tmp_path_factory.mktemp("outer")
    root = outer / "root"
    (root / "a" / "b").mkdir(parents=True)
    for folder in (outer, root, root / "a", root / "a" / "b"):
        (folder / "x.png").write_bytes(b"")
    (root / "in").symlink_to(root / "a")
    (root / "out").symlink_to(outer)
    (root / "a" / "up").symlink_to("../..")
    (root / "a" / "out.png").symlink_to(outer / "x.png")
    return root


PARTS = st.sampled_from(["a", "b", "in", "out", "up", "..", ".", "", "x.png", "out.png", "C:", "\0"])


@settings(max_examples=300)
@given(parts=st.lists(PARTS, min_size=1, max_size=5), absolute=st.booleans(), sep=st.sampled_from(["/", "\\", "//"]))
def test_a_listed_path_is_inside_or_refused_by_the_list_s_name(
    root: Path, parts: list[str], absolute: bool, sep: str
) -> None:
    text = sep * absolute + sep.join(parts)
    source = root / "list.txt"
    try:
        (path,) = images_in(root, [text], source)
    except UserError as error:
        assert str(error).startswith(f"{source}: ")
        return
    assert (root / path).resolve().is_relative_to(root.resolve())
    assert ".." not in path
    assert path == Path(path).as_posix()


def test_what_is_inside_is_taken_under_one_name(root: Path) -> None:
    assert images_in(root, ["./a//x.png", "in/x.png", "a\\b\\x.png"], root) == ("a/x.png", "in/x.png", "a/b/x.png")


def test_a_colon_is_no_drive_in_a_longer_name(tmp_path: Path) -> None:
    (tmp_path / "12:30.png").write_bytes(b"")
    assert images_in(tmp_path, ["12:30.png"], tmp_path) == ("12:30.png",)


def test_blank_lines_and_comments_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfa 1\r\n\n# b 2\r\nc d 3\n")
    assert read_rows(path, 2) == [["a", "1"], ["c", "d", "3"]]
    path.write_text("\n# nothing\n")
    with pytest.raises(UserError, match=r"list\.txt lists nothing"):
        read_rows(path, 2)


def test_a_list_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.txt").write_bytes(b"x" * 100)
    monkeypatch.setattr(lists, "MAX_TEXT", 99)
    with pytest.raises(UserError, match=r"list\.txt is larger than"):
        read_text(tmp_path / "list.txt")
    with pytest.raises(UserError, match=r"none\.txt: cannot be read \(No such file"):
        read_text(tmp_path / "none.txt")


def test_labels_are_names_or_whole_numbers(tmp_path: Path) -> None:
    assert labels_of(["b", "a", "b"], ("a", "b"), tmp_path).tolist() == [1, 0, 1]
    path = tmp_path / "list.txt"
    path.write_text("# image label\n\na.png 1\nb.png x\n")
    assert integer("-3", path, 0) == -3
    assert integer("9" * 18, path, 0) == 10**18 - 1
    for wrong in ("3.0", "", "three", "--5", "99999999999999999999", "9" * 5000, "٣"):
        with pytest.raises(
            UserError, match=r"list\.txt: line 4: the label should be a whole number of at most 18 digits, not "
        ):
            integer(wrong, path, 1)
