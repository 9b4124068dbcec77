"""The site is built with no broken link, and each of its pages can be reached."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from places import ROOT


class Page(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.anchors |= {value for name in ("id", "name") if (value := given.get(name))}
        self.links += [value for name in ("href", "src") if (value := given.get(name))]


def test_no_page_stands_twice_in_the_navigation() -> None:
    named = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2])
    assert len(named) > 30 and sorted(named) == sorted({*named})


@pytest.mark.slow
def test_every_link_leads_somewhere(site: Path) -> None:
    """By the pages as they are in the end, whatever MkDocs has checked: files, and places in them."""
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    assert len(pages) > 50
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith("data:"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (
                parts.fragment and target in pages and parts.fragment not in pages[target].anchors
            ):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


SAID = re.compile(r"<article.*?</article>", re.DOTALL)
CODE = re.compile(r"<(pre|code|script|svg|style)\b.*?</\1>", re.DOTALL)
MARKS = re.compile(r"\*\*\S|\]\(|\n *[-*] \S|\|[-: ]+\||`[^`\n]+`")
"""What Markdown has for bold words, links, points of a list, tables and code."""


def unread(page: str) -> list[str]:
    """The marks of Markdown that a reader of the page would see: what stands where no list or table is recognised."""
    (article,) = SAID.findall(page) or [""]
    return MARKS.findall(html.unescape(re.sub(r"<[^>]+>", "", CODE.sub("", article))))


@pytest.mark.slow
def test_no_page_shows_its_markdown(site: Path) -> None:
    """As where what belongs to a point of a list is indented by two: GitHub takes that, and the site wants four."""
    found = {str(path): unread(path.read_text()) for path in site.rglob("index.html")}
    assert {path: marks for path, marks in found.items() if marks} == {}


def test_markdown_on_a_page_is_seen() -> None:
    page = "<article><p>a\n- <strong>b</strong></p><code>**c**</code> **d** [e](f.md)</article>"
    assert [mark.strip() for mark in unread(page)] == ["- b", "**d", "]("]


FETCHED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "srcset",
    "video": "src",
    "audio": "src",
    "object": "data",
}
"""What a browser fetches by itself, and where a tag names it; of links, those below."""
LINKED = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "preconnect", "manifest"}


class Fetched(HTMLParser):
    """The addresses that a page has a browser fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.classes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.classes |= {*(given.get("class") or "").split()}
        linked = tag == "link" and LINKED & {*(given.get("rel") or "").split()}
        if address := given.get("href" if linked else FETCHED.get(tag, "")):
            self.addresses.append(address)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)


def elsewhere(addresses: list[str]) -> list[str]:
    return [address for address in addresses if urlsplit(address).netloc]


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    """No script, style, font or picture: a page works where its host alone is reached, and tells nobody who reads."""
    for path in site.rglob("*.html"):
        page = Fetched(path.read_text())
        assert elsewhere(page.addresses) == [], path
        # The theme's script fetches what draws these from a content delivery network.
        assert not page.classes & {"mermaid", "arithmatex"}, path
    for path in site.rglob("*.css"):
        assert elsewhere(re.findall(r"(?:url\(|@import )['\"]?([^'\")]+)", path.read_text())) == [], path


def test_what_is_fetched_from_elsewhere_is_seen() -> None:
    page = Fetched(
        '<link rel=stylesheet href=https://a.org/x.css><link rel="canonical" href="https://a.org/"><a href="https://a.org/">'
        '<script src="//b.org/x.js"></script><img src="x.png"><img src="https://c.org/x.png"/><pre class="x mermaid">'
    )
    assert elsewhere(page.addresses) == ["https://a.org/x.css", "//b.org/x.js", "https://c.org/x.png"]
    assert "mermaid" in page.classes


@pytest.mark.slow
def test_the_rooms_are_drawn(site: Path) -> None:
    assert (site / "architecture" / "index.html").read_text().count('class="rooms"') == 1


@pytest.mark.slow
def test_the_api_has_shapes_and_errors(site: Path) -> None:
    text = (site / "reference" / "api" / "index.html").read_text()
    for name in ("create_model", "training_step", "prepare", "fit", "load_adapters", "compiled", "Prediction"):
        assert re.search(rf'id="[\w.]+\.{name}"', text), name
    assert "(batch, height, width, 3)" in text and "UserError" in text


@pytest.mark.slow
def test_every_page_can_be_reached_from_the_first(site: Path) -> None:
    text = (site / "index.html").read_text()
    pages = {path.parent.relative_to(site).as_posix() for path in site.rglob("index.html")} - {"."}
    assert [page for page in sorted(pages) if not re.search(rf'href="?{re.escape(page)}/', text)] == []
