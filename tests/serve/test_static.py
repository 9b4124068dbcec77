"""The files of the page: what they name is here, and nothing stands in them that a policy would have to allow."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from mlx_peft.serve import app as application

STATIC = Path(application.__file__).parent / "static"
REPORT = STATIC.parents[1] / "report" / "web" / "templates" / "report.css"


class Elements(HTMLParser):
    """The elements of a page with their attributes, and what stands in scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_all_that_the_page_names_is_here_and_nothing_stands_inside_that_a_policy_would_have_to_allow() -> None:
    elements = Elements((STATIC / "index.html").read_text("utf-8")).found
    named = [value for _, own in elements for key, value in own.items() if key in ("src", "href") and value]
    files = [name.removeprefix("static/") for name in named if name.startswith("static/")]
    modules = [
        name for file in STATIC.glob("*.js") for name in re.findall(r'from "\./([^"]+)"', file.read_text("utf-8"))
    ]
    assert {*files, *modules, "index.html"} == {file.name for file in STATIC.iterdir()}
    assert all(name.startswith(("#", "static/")) or name == "openapi.json" for name in named), "and nothing elsewhere"
    assert not [own for tag, own in elements if tag == "style" or "style" in own or any(key[:2] == "on" for key in own)]
    assert all("src" in own for tag, own in elements if tag == "script")


def test_it_writes_no_html_and_runs_no_text() -> None:
    """What a server or a file says is only ever set as text."""
    scripts = "\n".join(file.read_text("utf-8") for file in STATIC.glob("*.js"))
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|https?://(?!www\.w3)", scripts
    )


def test_its_colours_are_those_of_a_report() -> None:
    first = re.compile(r":root \{.*?\n\}", re.DOTALL)
    pages = [first.search(file.read_text("utf-8")) for file in (STATIC / "page.css", REPORT)]
    assert pages[0] and pages[1] and pages[0][0] == pages[1][0]
