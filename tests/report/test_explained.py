"""Pictures of what a model looked at, and the folder and the page that hold them."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from mlx_peft.artifacts.explain import DROPPED, SKIPPED, Explained, Unread
from mlx_peft.core.errors import UserError
from mlx_peft.report import explanations
from mlx_peft.report.explained import draw
from mlx_peft.report.overview import overview
from mlx_peft.report.patches import LINE, SHARP, heat, regions
from mlx_peft.tasks.single_label import SINGLE_LABEL

PIXELS = np.random.default_rng(0).integers(20, 200, (34, 34, 3), np.uint8)
"""Four by four patches of eight pixels, and two pixels that no patch has."""
ALONE = np.arange(16).reshape(4, 4)


def explained(image: str = "cat.png", depth: int = 3, **changes) -> Explained:
    maps = np.random.default_rng(1).random((2 + depth, 4, 4))
    answers = [{"class": "cat", "probability": 0.75}, {"class": "dog", "probability": 0.25}]
    found = Explained(
        image=image, pixels=PIXELS, patch_size=8, answers=answers, of="cat", rollout=maps[0], weighted=maps[1],
        taken=tuple(maps[2:]), tokens=(ALONE,) * depth, counts=(17,) * depth,
    )  # fmt: skip
    return replace(found, **changes)


def test_a_map_lies_on_its_patches_and_what_no_patch_has_stays_grey():
    values = np.zeros((4, 4))
    values[1, 2] = 1
    found = heat(PIXELS, values, 8)
    dark, bright = found[0:8, 0:8].astype(int), found[8:16, 16:24].astype(int)
    assert (bright[..., :2].sum(-1) > bright[..., 2]).all(), "yellow"
    assert (dark[..., 2] > dark[..., 1]).all(), "blue"
    assert (found[32:] == found[32:, :, :1]).all() and (found[:, 32:] == found[:, 32:, :1]).all()
    again = heat(PIXELS, np.ones((4, 4)), 8)
    np.testing.assert_array_equal(again[0:8, 0:8], found[0:8, 0:8])
    np.testing.assert_array_equal(heat(PIXELS, 5 * values - 2, 8), found)


def test_tokens_are_drawn_as_what_they_stand_for():
    tokens = ALONE.copy()
    tokens[0, 0] = tokens[0, 1] = tokens[3, 3] = 7  # one region in two parts, and patch 7 itself
    tokens[2, 0], tokens[2, 1] = SKIPPED, DROPPED
    found, times = regions(PIXELS, tokens, 8), -(-SHARP // 34)
    small = found[times // 2 :: times, times // 2 :: times]
    parts = [PIXELS[:8, :16], PIXELS[24:32, 24:32], PIXELS[8:16, 24:32]]
    mean = np.concatenate([part.reshape(-1, 3) for part in parts]).mean(0)
    for rows, columns in ((slice(0, 7), slice(0, 15)), (slice(24, 31), slice(24, 31))):
        np.testing.assert_allclose(small[rows, columns].reshape(-1, 3) - mean, 0, atol=0.5)
    np.testing.assert_array_equal(small[8:16, 0:8], PIXELS[8:16, 0:8])
    np.testing.assert_array_equal(small[32:], PIXELS[32:])
    np.testing.assert_allclose(small[16:24, 0:8], 0.25 * PIXELS[16:24, 0:8], atol=0.5)
    assert not small[16:24, 8:16].any()
    line = (found == LINE).all(-1)
    assert line[: 8 * times, 16 * times - 1].all(), "where the region ends"
    assert not line[: 7 * times, 8 * times - 1].any(), "not inside it"
    assert not line[9 * times : 15 * times, 8 * times - 1].any(), "nor between patches that are alone"
    np.testing.assert_array_equal(regions(PIXELS, ALONE, 8)[::times, ::times], PIXELS)


def size(content: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(content)).size


LINES = ["75.0 %  cat $x", "25.0 %  dog"]


def test_a_picture_has_a_strip_of_tokens_where_they_become_fewer():
    merged = explained(tokens=(ALONE, np.zeros((4, 4), int), np.zeros((4, 4), int)))
    assert size(draw(merged, LINES))[1] > size(draw(explained(), LINES))[1]


@pytest.mark.slow
def test_of_many_blocks_no_more_are_drawn_than_are_seen_and_of_few_they_are_no_larger_than_the_maps():
    plain = explained()
    assert size(draw(explained(depth=40), LINES))[0] == size(draw(plain, LINES, [2]))[0]
    assert size(draw(explained(depth=1), LINES[:1])) == size(draw(plain, LINES))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time for pictures."""
    for name in ("draw", "overview"):
        monkeypatch.setattr(explanations, name, lambda *_: b"a picture")


@pytest.mark.usefixtures("fine_pictures")
def test_an_overview_has_a_row_for_each_image():
    one, two = explained(), explained(tokens=(ALONE, np.zeros((4, 4), int), np.zeros((4, 4), int)))
    width, height = size(overview([one], ["cat"]))
    assert size(overview([one, two], ["75.0 %  cat $x", "dog"])) == (width, 2 * height)
    assert size(overview([two], ["cat"], [0]))[0] < width


class Links(HTMLParser):
    """What a page shows and asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_shows_each_image_and_obeys_no_name(tmp_path: Path, undrawn: None) -> None:
    hostile = '<script src="x">"&.png'
    each = [
        explained(f"one/{hostile}"),
        explained("a/cat.png"),
        Unread("b.png", "no <b>image</b>"),
        explained("b/CAT.png"),
    ]
    found = explanations.write(tmp_path / "out", each, SINGLE_LABEL, "<i>run</i>", arrays=True)
    assert [entry.get("picture") for entry in found] == ["_script_src_x_.png", "cat.png", None, "CAT-2.png"]
    assert json.loads((tmp_path / "out" / "explanations.json").read_text()) == found
    page = Links((tmp_path / "out" / "index.html").read_text())
    assert {"script", "i", "b", "link"}.isdisjoint(page.tags) and page.tags.count("img") == 3
    assert hostile in page.text and "no <b>image</b>" in page.text and "75.0 %  cat" in page.text
    files = {unquote(link) for link in page.links if not link.startswith("#")}
    assert files == {entry["picture"] for entry in found if "picture" in entry}
    arrays = np.load(tmp_path / "out" / "cat.npz")
    np.testing.assert_array_equal(arrays["rollout"], explained().rollout)
    assert arrays["taken"].shape == (3, 4, 4) and arrays["pixels"].shape == (34, 34, 3)


def test_an_earlier_folder_is_replaced_and_no_other(tmp_path: Path, undrawn: None) -> None:
    out = tmp_path / "out"
    explanations.write(out, [explained("a.png"), explained("b.png")], SINGLE_LABEL, "run")
    explanations.write(out, [explained("c.png")], SINGLE_LABEL, "run")
    assert {file.name for file in out.iterdir()} == {"c.png", "explanations.json"}
    (out / "own.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="exists already"):
        explanations.write(out, [explained("c.png")], SINGLE_LABEL, "run")
    (out / "own.png").unlink()

    def broken():
        yield explained("d.png")
        raise UserError("in the middle")

    for each in (broken(), [Unread("e.png", "why")], [Unread("e.png", "why"), Unread("f.png", "why")]):
        with pytest.raises(UserError, match=r"in the middle|^why$|none of the 2 images can be read; the first: why"):
            explanations.write(out, each, SINGLE_LABEL, "run")
        assert {file.name for file in out.iterdir()} == {"c.png", "explanations.json"}
        assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
