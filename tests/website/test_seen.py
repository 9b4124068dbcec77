"""Each page in a browser: it can be read in both colour schemes, on a wide screen and a narrow one."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import browser as browser
from browsing import in_chromium

WAYS = [("light", 390), ("dark", 390), ("light", 1280), ("dark", 1280)]
PATIENCE = 600_000
"""Milliseconds after which a page is taken to hang, on a machine that does much else."""


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


def seen(page: Any) -> list[Any]:
    """What is wrong with a page: what axe-core finds grave, and what sticks out to the side."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    grave = [one for one in found if one["impact"] in ("serious", "critical")]
    wrong: list[Any] = [(one["id"], node["html"]) for one in grave for node in one["nodes"]]
    if not page.evaluate("document.documentElement.scrollWidth <= innerWidth"):
        wrong.append("it sticks out to the side")
    return wrong


@pytest.mark.slow
@in_chromium
@pytest.mark.parametrize("scheme, width", WAYS)
def test_every_page_can_be_read(site: Path, address: str, browser: Any, scheme: str, width: int) -> None:
    found = {}
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    for path in sorted(site.rglob("*.html")):
        page, said = context.new_page(), []
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on(
            "request",
            lambda one, said=said: None if one.url.startswith((address, "data:", "blob:")) else said.append(one.url),
        )
        page.goto(address + path.relative_to(site).as_posix())
        shown = page.evaluate("document.body.getAttribute('data-md-color-scheme')")
        assert shown in (None, {"light": "default", "dark": "slate"}[scheme])
        if wrong := [*said, *seen(page)]:
            found[path.relative_to(site).as_posix()] = wrong
        page.close()
    context.close()
    assert found == {}


@pytest.mark.slow
@in_chromium
def test_what_cannot_be_read_is_seen(browser: Any) -> None:
    page = browser.new_page()
    page.set_content(
        "<html lang=en><title>a</title><main><h1>a</h1><p style='color: #999; width: 3000px'>faint</p></main>"
    )
    (contrast, aside) = seen(page)
    assert contrast[0] == "color-contrast" and aside == "it sticks out to the side"
