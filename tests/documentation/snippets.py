"""The blocks of code in README.md, CONTRIBUTING.md and docs, and the lines of commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
FENCE = re.compile(r"^ *(`{3,}|~{3,})(.*)$")
INFO = re.compile(r'(\w*)(?: title="([\w-]+)")?')
"""What stands behind a fence: a language, and whose code it is where two libraries are set beside each other."""


@dataclass(frozen=True)
class Snippet:
    """A block between two fences.

    Attributes:
        page: the file, from the root.
        heading: that it stands under.
        language: the word after the fence; empty for commands.
        title: the library whose code it is, where two are set beside each other; else empty.
    """

    page: str
    heading: str
    line: int
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The lines, each without its comment; continued ones are one."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def snippets(page: Path) -> list[Snippet]:
    """The blocks of a page, in order."""
    found: list[Snippet] = []
    heading, fence, start, info, lines = "", "", 0, "", [""]
    for number, line in enumerate(page.read_text("utf-8").splitlines(), start=1):
        match = FENCE.match(line)
        if match and not fence:
            fence, start, info, lines = match[1], number, match[2].strip(), []
        elif match and match[1].startswith(fence) and not match[2].strip():
            name = page.relative_to(ROOT).as_posix()
            told = INFO.fullmatch(info)
            assert told, f"{page}:{start}: what is {info}?"
            language = "" if told[1] == "bash" else told[1]
            found.append(Snippet(name, heading, start, language, told[2] or "", "\n".join(lines) + "\n"))
            fence = ""
        elif fence:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    assert not fence, f"{page}:{start}: the block has no end"
    return found


SNIPPETS = [snippet for page in PAGES for snippet in snippets(page)]
