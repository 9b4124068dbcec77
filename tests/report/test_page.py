"""The page of a report: it holds all there is, obeys no name and asks for no network.

In a browser it sorts, filters and opens runs, on a wide screen and a narrow one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browsing import browser as browser
from browsing import in_chromium
from made_runs import CLASSES, experiment, make

from mlx_peft.config import yaml_io
from mlx_peft.config.schema import Experiment
from mlx_peft.report import files, gather
from mlx_peft.report.study import examined
from mlx_peft.report.web.page import TEMPLATES

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
HOME = "/home/somebody"
SHARES = {"lora": ({"name": "lora"}, 0.8), "linear": ({"name": "linear"}, 0.6), "ssf": ({"name": "ssf"}, 0.79)}
OUTSIDE = (
    "all => all.filter(one => one.closest('table') && one.offsetParent === document.body).map(one => one.outerHTML)"
)
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of six runs, one with a hostile name, and of one that is damaged."""
    folder = tmp_path_factory.mktemp("runs")
    for at, (name, (method, share)) in enumerate(SHARES.items()):
        for seed in (0, 1):
            config = experiment(method, "cifar10", seed)
            classes = (HOSTILE, *CLASSES[1:]) if name == "ssf" else CLASSES
            make(folder / f"{name}-seed={seed}", config, share, adapter=1000 * 10**at, seconds=10 + at, classes=classes,
                 notes=[HOSTILE])  # fmt: skip
    paths = {"model": {"name": "vit_small_patch14_dinov2", "weights": f"{HOME}/dino.safetensors"},
             "data": {"name": "cifar10", "root": f"{HOME}/photos"}}  # fmt: skip
    make(folder / "<b>odd\u202e", experiment({"name": "bitfit"}, "cifar10", 0, **paths), 0.7)
    (folder / "broken").mkdir()
    (folder / "broken" / "result.json").write_text('{"run_id": 3}')
    (folder / "sweep.json").write_text(
        json.dumps({"runs": [{"name": "lora-seed=2", "folder": "x", "status": "failed", "error": "no <i>memory</i>"}]})
    )
    found = gather.gathered(folder)
    return files.write(found, examined(found), tmp_path_factory.mktemp("out"), "a <study>")[0]


class Seen(HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def seen(written: Path) -> Seen:
    return Seen(written.read_text("utf-8"))


def test_a_browser_is_allowed_nothing_but_the_page_s_own_style_and_script(written: Path, seen: Seen) -> None:
    page = written.read_text("utf-8")
    (policy,) = [one["content"] or "" for one in seen.all("meta") if "http-equiv" in one]
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    links = ("src", "srcset", "href")
    addresses = [value for _, attributes in seen.elements for key, value in attributes.items() if key in links]
    assert addresses and all(str(address).startswith(("data:image/png;base64,", "#")) for address in addresses)
    assert not any(key.startswith("on") or key == "style" for _, attributes in seen.elements for key in attributes)


def test_names_are_shown_and_not_obeyed(written: Path, seen: Seen) -> None:
    page = written.read_text("utf-8")
    assert "\u202e" not in page and r"<b>odd\u202e" in seen.text
    assert len(seen.all("script")) == 2 and not seen.all("b") and not seen.all("i")
    assert HOSTILE not in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert HOSTILE in json.dumps(data["classes"]) and data["runs"][-1]["notes"] == [HOSTILE]


def test_what_was_left_out_or_is_missing_is_said(seen: Seen) -> None:
    assert "damaged: broken: result.json is not a run's" in seen.text
    assert "seed 2: failed: no <i>memory</i>" in seen.text
    assert "paired bootstrap over 200 test images" in seen.text


def test_a_reader_by_ear_or_by_keyboard_has_what_an_eye_has(seen: Seen) -> None:
    assert all(one.get("alt") for one in seen.all("img")) and len(seen.all("img")) >= 3
    assert all(one.get("scope") in ("col", "row") for one in seen.all("th"))
    assert ("html", {"lang": "en"}) in seen.elements
    assert [one for one in seen.all("a") if one.get("class") == "skip"]
    (dialog,) = seen.all("dialog")
    assert dialog["aria-labelledby"] in {one.get("id") for one in seen.all("h2")}


def test_a_configuration_is_kept_once_and_without_its_paths(written: Path) -> None:
    page = written.read_text("utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert len(data["configs"]) == 4 and len(data["runs"]) == 7
    assert all("found:" not in text and not re.search("^seed:", text, re.MULTILINE) for text in data["configs"])
    assert HOME not in page and any("  weights: dino.safetensors" in text for text in data["configs"])
    (lora,) = [text for text in data["configs"] if "name: lora" in text]
    again = Experiment.model_validate_json(json.dumps(yaml_io.parse(lora, "the page").values), strict=True)
    assert again == experiment({"name": "lora"}, "cifar10", 0), "it is YAML, and says all"
    first = data["runs"][0]
    assert [title for title, *_ in first["curves"]] == ["validation top-1 (%)", "validation loss", "training loss"]
    assert sum(map(sum, first["confusion"])) == 200


def brightness(colour: tuple[float, ...]) -> float:
    """Relative luminance, as the W3C's guidelines for contrast have it."""
    parts = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    low, high = sorted((brightness(one), brightness(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_has_contrast_enough(dark: bool) -> None:
    """At least 4.5 (WCAG 2.2, 1.4.3), in the cells of a confusion matrix too, whatever their share."""
    style = (TEMPLATES / "report.css").read_text("utf-8")

    def rgb(text: str) -> tuple[float, ...]:
        return tuple(int(text[at : at + 2], 16) / 255 for at in (1, 3, 5))

    both = re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", style)
    colours = {name: rgb((light, night)[dark]) for name, light, night in both}
    pairs = [(text, ground) for text in ("text", "quiet", "accent") for ground in ("ground", "raised")]
    for text, ground in [*pairs, ("text", "best"), ("text", "warn"), ("accent", "warn")]:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    deep, most = re.findall(r"color-mix\(in srgb, (#\w{6}) calc\(var\(--share, 0\) \* (\d+)%\)", style)[0]
    for share in (0, 0.25, 0.5, 0.75, 1):
        part = share * int(most) / 100
        mixed = tuple(part * a + (1 - part) * b for a, b in zip(rgb(deep), colours["ground"], strict=True))
        assert contrast(colours["text"], mixed) >= 4.5, share


@pytest.mark.slow
@in_chromium
@pytest.mark.parametrize("screen", [WIDE, NARROW], ids=["wide", "narrow"])
def test_in_a_browser_it_sorts_filters_and_opens_a_run(browser: Any, written: Path, screen: dict[str, int]) -> None:
    page = browser.new_page(viewport=screen)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    page.goto(written.as_uri())
    runs = page.locator("#runs-table tbody tr")
    heads = page.locator("#runs-table thead th")
    top1 = heads.all_text_contents().index("test top-1 (%)")

    heads.nth(top1).locator("button").click()
    shown = [float(text) for text in page.locator(f"#runs-table tbody td:nth-child({top1 + 1})").all_text_contents()]
    assert shown == sorted(shown, reverse=True) and heads.nth(top1).get_attribute("aria-sort") == "descending"
    heads.nth(top1).locator("button").press("Enter")
    assert heads.nth(top1).get_attribute("aria-sort") == "ascending"

    page.locator("#compared thead th", has_text=re.compile("^n$")).locator("button").click()
    names = page.locator("#compared tbody th").all_text_contents()
    assert names == ["linear", "lora", "ssf", r"<b>odd\u202e"], "the mark of a footnote is no digit of its number"

    box = page.locator('.filters[data-table="runs-table"]')
    box.locator("select").first.select_option("lora")
    assert page.locator("#runs-table tbody tr:visible").count() == 2
    box.locator("input").fill("seed=1")
    assert page.locator("#runs-table tbody tr:visible").count() == 1
    assert box.locator(".status").text_content() == "1 of 7 shown"
    box.locator("button").click()
    assert page.locator("#runs-table tbody tr:visible").count() == runs.count() == 7

    page.locator("#compared button[data-runs]", has_text="ssf").click()
    assert page.locator("#runs-table tbody tr:visible").count() == 2
    page.locator("#runs-table tbody tr:visible button").first.click()
    dialog = page.locator("dialog")
    assert dialog.locator("svg").count() == 3
    assert dialog.locator("table.confusion tbody tr").count() == 10
    assert HOSTILE in (dialog.text_content() or "")
    assert "name: ssf" in (dialog.locator("pre").text_content() or "")
    assert page.locator(".hidden").evaluate_all(OUTSIDE) == [], "what only ears hear widens no page"
    first = dialog.locator("h2").text_content()
    dialog.press("ArrowRight")
    assert dialog.locator("h2").text_content() != first
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out to the side"
    dialog.press("Escape")
    assert not dialog.is_visible()

    page.locator("#theme").click()
    page.locator("#theme").click()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert said == []
    page.close()
