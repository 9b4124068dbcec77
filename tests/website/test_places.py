"""A link from file to file becomes one from page to page."""

from __future__ import annotations

import pytest
from places import ELSEWHERE, FOLDERS, ROOT, place, relinked

FILES = {"README.md", "docs/a.md", "docs/b.md", "experiments/results/c.md", "experiments/results/c.png", "tests/d.py"}


def there(path: str) -> bool:
    return path in FILES or path in FOLDERS


@pytest.mark.parametrize(
    ("file", "page"),
    [
        ("README.md", "index.md"),
        ("docs/a.md", "a.md"),
        ("docs/reference/api.md", "reference/api.md"),
        ("experiments/results/c.md", "results/c.md"),
        ("experiments/results", "results/README.md"),
        ("experiments/results/devices/README.md", "results/devices-README.md"),
        ("tests/d.py", None),
        ("LICENSE", None),
    ],
)
def test_a_file_has_its_place(file: str, page: str | None) -> None:
    assert place(file) == page


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("README.md", "see [a](docs/a.md#top)", "see [a](a.md#top)"),
        ("docs/a.md", "[all](../README.md) and [b](b.md)", "[all](index.md) and [b](b.md)"),
        ("docs/a.md", "![c](../experiments/results/c.png)", "![c](results/c.png)"),
        ("docs/a.md", "[`c`](../experiments/results/c.md)", "[`c`](results/c.md)"),
        ("experiments/results/c.md", "[a](../../docs/a.md)", "[a](../a.md)"),
        ("docs/a.md", "[all](../experiments/results)", "[all](results/README.md)"),
        ("docs/a.md", "a [test](../tests/d.py) holds it", "a test holds it"),
        ("docs/a.md", "[here](#b), [far](https://example.org/a.md)", "[here](#b), [far](https://example.org/a.md)"),
        ("docs/a.md", "```\n[x](y.md)\n```\n[b](b.md)", "```\n[x](y.md)\n```\n[b](b.md)"),
        ("docs/a.md", "[two\nlines](../README.md)", "[two\nlines](index.md)"),
        ("docs/a.md", "````\n```\n[x](y.md)\n```\n````", "````\n```\n[x](y.md)\n```\n````"),
    ],
)
def test_a_link_leads_to_the_same_on_the_site(file: str, before: str, after: str) -> None:
    assert relinked(before, file, there) == after


def test_a_link_that_shows_a_path_shows_the_page_s_title() -> None:
    found = relinked("[docs/a.md](docs/a.md#top), [a](docs/a.md)", "README.md", there, {"docs/a.md": "The first"}.get)
    assert found == "[The first](a.md#top), [a](a.md)"


def test_a_link_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"docs/a\.md: there is no docs/z\.md"):
        relinked("[z](z.md)", "docs/a.md", there)


def test_every_page_of_elsewhere_is_there() -> None:
    assert all((ROOT / file).exists() for file in (*ELSEWHERE, *FOLDERS))
