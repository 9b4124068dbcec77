"""The page: a browser asks nobody but this server, and a person by eye, by ear or by keyboard has all of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from banks import ARGS, SIZE, adapter, base_of
from browsing import browser as browser
from browsing import in_chromium
from PIL import Image
from served_here import serving

from convert.adapters.peft import write_adapter
from mlx_peft.config.methods import LoRA
from mlx_peft.config.schema import Model
from mlx_peft.serve.tokens import Grant, Tokens

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
HOSTILE = "<img src=x onerror=alert(1)>"
ADAPTERS = {"north": LoRA(rank=4), "south": LoRA(rank=2, dora=True)}
TOKEN = "a-token-of-thirty-two-characters"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters, one with a class whose name is written to be obeyed."""
    place = tmp_path_factory.mktemp("adapters")
    description = Model(name="vit_tiny_patch16_224", weights="none", image_size=SIZE, args=ARGS)
    for seed, (name, method) in enumerate(ADAPTERS.items()):
        own = adapter(base_of(), method, seed, classes=4)
        write_adapter(place / name, replace(own, model=description, classes=("cat", HOSTILE, "a dog", "bird")))
    return place


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with serving(folder) as found:
        yield found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("images")
    for number, name in enumerate(("first.png", "second.jpg")):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / name)
    return sorted(place.iterdir())


Visit = Callable[..., Any]


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    """``visit(screen)`` opens the page; at the end nothing may have been said on the console, and nobody else asked."""
    pages = []

    def opened_page(
        screen: dict[str, int] = WIDE, where: str = address, scheme: str = "light", quiet: bool = True
    ) -> Any:
        page = browser.new_page(viewport=screen, color_scheme=scheme)
        page.said = []
        page.quiet = quiet
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(f"error: {error}"))
        page.on("request", lambda request: page.said.append(request.url) if elsewhere(request.url, where) else None)
        page.goto(where)
        pages.append(page)
        return page

    yield opened_page
    for page in pages:
        assert not page.quiet or page.said == []
        page.close()


def elsewhere(url: str, where: str) -> bool:
    return not url.startswith((f"{where}/", "blob:", "data:"))


def drop(page: Any, files: list[Path]) -> None:
    """As a hand does: the files arrive in an event of the browser."""
    import base64

    content = [(file.name, base64.b64encode(file.read_bytes()).decode()) for file in files]
    transfer = page.evaluate_handle(
        """(files) => {
          const transfer = new DataTransfer();
          for (const [name, text] of files) {
            transfer.items.add(new File([Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0))], name));
          }
          return transfer;
        }""",
        content,
    )
    page.dispatch_event("#drop", "dragover", {"dataTransfer": transfer})
    assert page.locator("#drop.over").count() == 1
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def answered(page: Any) -> None:
    until(page, "[aria-busy=true]", 0)


def until(page: Any, selector: str, count: int) -> None:
    """Waits until the page has so many of an element. The page's own policy lets nobody run a text in it."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_count(count, timeout=15_000)


def must_be_usable(page: Any) -> None:
    """axe-core finds nothing serious, and nothing sticks out to the side."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    grave = [
        (one["id"], [node["html"] for node in one["nodes"]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert grave == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out to the side"


@pytest.mark.slow
@in_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [WIDE, NARROW], ids=["wide", "narrow"])
def test_two_images_are_dropped_and_two_adapters_compared(
    visit: Visit, images: list[Path], screen: dict[str, int], scheme: str
) -> None:
    page = visit(screen, scheme=scheme)
    until(page, "#first option", 2)
    must_be_usable(page)
    page.select_option("#second", "south")
    drop(page, images)
    answered(page)
    assert page.locator(".card").count() == 2 and page.locator(".answer .bars li").count() == 2 * 2 * 4
    for card in page.locator(".card").all():
        assert re.search(r"^(Both say|They differ)", card.locator(".verdict").text_content())
        assert re.search(
            r"decode .* ms, queue .* ms, device .* ms", card.locator(".answer .facts").first.text_content()
        )
        shares = [float(text[:-2]) for text in card.locator(".answer").first.locator(".n").all_text_contents()]
        assert abs(sum(shares) - 100) <= 0.2 and shares == sorted(shares, reverse=True)
    assert HOSTILE in page.locator("#cards").text_content()

    page.locator("button", has_text="Where did it look?").first.click()
    picture = page.locator(".picture img")
    picture.wait_for()
    assert page.evaluate("document.activeElement.value") == "rollout", "the keyboard goes on where the picture is"
    before = picture.get_attribute("src")
    page.keyboard.press("ArrowDown")
    assert "in favour of" in picture.get_attribute("alt") and picture.get_attribute("src") != before
    must_be_usable(page)

    page.select_option("#second", "")
    answered(page)
    assert page.locator(".answer").count() == 2 and page.locator(".picture").count() == 1, "what was asked is kept"

    page.locator('nav a[href="#health"]').click()
    until(page, "#charts circle", 2)  # of the times there is no point while nobody asks
    assert "Ready" in page.locator("#state").text_content()
    assert page.locator("#adapters tbody tr").count() == 2
    answered_so_far = page.locator("#figures div", has_text="requests answered").locator("dd").text_content()
    assert int(answered_so_far) >= 5, "four answers and an explanation, of this page"
    assert page.evaluate("document.activeElement.id") == "health-title"
    must_be_usable(page)


@pytest.mark.slow
@in_chromium
def test_by_keyboard_alone_an_image_is_chosen_asked_and_removed(visit: Visit, images: list[Path]) -> None:
    page = visit()
    until(page, "#first option", 2)
    order = []
    for _ in range(9):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        outline = page.evaluate(
            "getComputedStyle(document.activeElement.closest('.drop') ?? document.activeElement).outlineWidth"
        )
        assert outline == "3px", f"{order[-1]} shows that it has the keyboard"
    assert order == ["To the images", "theme", "Try it", "Health", "OpenAPI", "files", "first", "second", "top"]
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")
    chooser.value.set_files(images[:1])
    answered(page)
    assert page.locator("#live").text_content().startswith("first.png, north: ")
    page.locator('button[aria-label="Remove first.png"]').press("Enter")
    assert page.locator(".card").count() == 0 and page.evaluate("document.activeElement.id") == "files"


@pytest.mark.slow
@in_chromium
def test_what_the_server_refuses_is_a_sentence_on_the_page(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "letter.png").write_text("no picture")
    page = visit(quiet=False)
    until(page, "#first option", 2)
    page.set_input_files("#files", [tmp_path / "letter.png"])
    answered(page)
    sentence = page.locator(".card .error").text_content()
    assert len(sentence) > 20 and "{" not in sentence
    assert page.locator("#live").text_content().endswith(sentence)
    assert [line for line in page.said if "status of 422" not in line and "ERR_" not in line] == []


@pytest.mark.slow
@in_chromium
def test_where_a_token_is_needed_the_page_asks_for_it_and_keeps_it_in_the_tab(
    visit: Visit, folder: Path, images: list[Path]
) -> None:
    with serving(folder, tokens=Tokens({TOKEN: Grant(frozenset({"south"}))})) as where:
        page = visit(where=where, quiet=False)
        field = page.locator("#token input")
        field.wait_for()
        assert page.evaluate("document.activeElement.name") == "token"
        must_be_usable(page)
        field.fill("not-the-token-that-is-asked-for")
        field.press("Enter")
        until(page, "#token:not([hidden])", 1)
        field.fill(TOKEN)
        field.press("Enter")
        until(page, "#first option", 1)
        assert page.locator("#token").is_hidden() and page.locator("#first").input_value() == "south"
        page.set_input_files("#files", images)
        answered(page)
        assert page.locator(".bars").count() == 2
        assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 1]
        assert [line for line in page.said if "status of 401" not in line] == []
        page.close()


@pytest.mark.slow
@in_chromium
def test_the_theme_is_the_systems_until_somebody_chooses_one(visit: Visit) -> None:
    page = visit(scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.click("#theme")
    assert page.locator("html").get_attribute("data-theme") == "light" and page.evaluate(ground) != dark
    page.reload()
    assert page.locator("#theme").text_content() == "Theme: light" and page.evaluate(ground) != dark
