"""The site is built with no broken link, and each of its pages can be reached."""

from __future__ import annotations

import re
import subprocess
import sys
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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


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


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        fetched = re.findall(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=\"?(https?://[^\s\">]+)", path.read_text())
        assert [one for one in fetched if "rel=canonical" not in one] == [], path


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
