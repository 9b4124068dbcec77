"""Which files of the repository are pages, and what a link from one to another is on the site.

Pages are written for a reader of the repository too: a link in them is a path from file to file. On the site a file of
``docs/`` stands at its own path, and some files of elsewhere stand beside them. A file that is no page, such as a test,
has no place there: a link to it loses its address and keeps its words.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

ELSEWHERE = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Files of the repository's root, and their pages."""
FOLDERS = {"experiments/results": "results", "docs": ""}
"""Folders of the repository, and where what is in them stands."""

FENCE = re.compile(r"^ *(`{3,}|~{3,})")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")


def place(file: str) -> str | None:
    """Where a file of the repository stands: ``experiments/results/a.md`` in ``results/a.md``. None: it is no page."""
    if file in ELSEWHERE:
        return ELSEWHERE[file]
    if file.endswith(".ipynb"):
        return place(file.removesuffix(".ipynb") + ".md")
    for folder, there in FOLDERS.items():
        if file == folder:
            return posixpath.join(there, "README.md")
        if file.startswith(f"{folder}/"):
            inner = file.removeprefix(f"{folder}/")
            return posixpath.join(there, inner if folder == "docs" else inner.replace("/", "-"))
    return None


def title(file: str) -> str:
    """What a page of the repository is called: its first heading, up to a colon."""
    found = re.search(r"^# ([^:\n]+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else file


def relinked(text: str, file: str, exists: Callable[[str], bool], title: Callable[[str], str] = str) -> str:
    """A page's text with its links as they are on the site. Code stays as it is.

    Args:
        file: the page, as a path of the repository.
        exists: whether there is such a file or folder in the repository.
        title: what a page is called, by its path: on the site a link whose words are that path has it for words.

    Raises:
        ValueError: a link leads to no file of the repository.
    """
    here = place(file)
    assert here is not None
    parts = [
        part if code else LINK.sub(lambda link: _link(link, file, here, exists, title), part)
        for part, code in _parts(text)
    ]
    return "\n".join(parts)


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """A text's lines in stretches of code and of prose; which of them, stands beside each."""
    lines: list[str] = []
    fence = ""
    for line in text.split("\n"):
        match = FENCE.match(line)
        if match and not fence:
            if lines:
                yield "\n".join(lines), False
            lines, fence = [line], match[1]
        elif match and match[1].startswith(fence):
            yield "\n".join([*lines, line]), True
            lines, fence = [], ""
        else:
            lines.append(line)
    if lines:
        yield "\n".join(lines), bool(fence)


def _link(link: re.Match[str], file: str, here: str, exists: Callable[[str], bool], title: Callable[[str], str]) -> str:
    picture, words, address = link[1], link[2], link[3]
    if re.match(r"[a-z]+:|#", address):
        return link[0]
    path, mark, anchor = address.partition("#")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
    if not exists(target):
        raise ValueError(f"{file}: there is no {target}, which a link leads to")
    there = place(target)
    if there is None:
        return words
    if words == target and target.endswith(".md"):
        words = title(target)
    return f"{picture}[{words}]({posixpath.relpath(there, posixpath.dirname(here) or '.')}{mark}{anchor})"
