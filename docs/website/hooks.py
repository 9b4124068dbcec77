"""What MkDocs calls while it builds: pages that come from the code and from notebooks, links between files as links of
pages, and the picture of the rooms."""

from __future__ import annotations

import re
from typing import Any

import commands
import configuration
import notebooks
import rooms
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from places import ELSEWHERE, FOLDERS, ROOT, place, relinked, title

GENERATED = {"reference/commands.md": commands.page, "reference/configuration.md": configuration.page}
"""What is put behind the text of a page."""
WIDE = {"coming-from.md"}
"""Pages that have nothing beside them: two columns of code want the room."""

WORD = re.compile(r"<code>([^<\s]{1,24})</code>")
"""Code that is one word, and short enough for a line of any screen."""
CODE = re.compile(r"<code>([^<]*\s[^<]*)</code>")
"""Code of several words; a block of code has elements inside."""
OPTION = re.compile(r"(?<![^\s>])--?\w[\w-]{0,22}(?=[\s=<])")
"""An option among them."""
NUMBER = re.compile(r'<td (style="text-align: right;">(?:[^<]|</?strong>){1,32}</td>)')
"""A cell that is a number, with its sign, its power or its deviation."""

PICTURE = re.compile(r"<p>(?=<img [^>]*>\s*</p>)")
"""Begins a paragraph that is a picture: where a screen is narrow it scrolls."""
DIALOG = 'data-md-component="search" role="dialog"'
"""The theme's dialog, which has no name that a screen reader could say."""
NOT_FOUND = "<h1>404 - Not found</h1>"
HOME = re.compile(r'<a href="([^"]*)" title="mlx-peft"')


def on_config(config: Any) -> Any:
    """Has every page in the navigation: measured tables below their list, and what mkdocs.yml does not name below the
    how-to pages."""
    named = str(config.nav)
    new = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if f"'{path.name}'" not in named]
    tables = sorted(there.removeprefix("results/") for there in _brought() if re.match(r"results/.*\.md$", there))
    for section in config.nav:
        if "Results" in section:
            section["Results"] = [f"results/{name}" for name in sorted(tables, key="README.md".__ne__)]
        if "How to" in section:
            section["How to"] += new
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages of elsewhere, what they show, and a page for each notebook."""
    for there, file in _brought().items():
        files.append(File.generated(config, there, abs_src_path=str(ROOT / file)))
    for path in notebooks.FILES:
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=notebooks.page(path)))
    return files


def _brought() -> dict[str, str]:
    """The files of elsewhere by where they stand on the site."""
    found = [*ELSEWHERE]
    for folder in FOLDERS:
        if folder != "docs":
            found += [
                path.relative_to(ROOT).as_posix() for path in sorted((ROOT / folder).rglob("*")) if path.is_file()
            ]
    return {there: file for file in found if (there := place(file)) is not None}


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """The links of a page as they are on the site. Raises PluginError where one leads nowhere."""
    source = page.file.src_uri
    if source in WIDE:
        page.meta["hide"] = ["navigation", "toc"]
    try:
        file = _brought().get(source, f"docs/{source}")
        text = rooms.drawn(relinked(markdown, file, lambda path: (ROOT / path).exists(), title))
    except ValueError as error:
        raise PluginError(str(error)) from error
    return f"{text}\n\n{GENERATED[source]()}" if source in GENERATED else text


def on_page_content(html: str, **_: Any) -> str:
    """Marks words of code and numbers: a browser would break an option at its hyphens, and 1e-7 too. A picture that
    scrolls can be reached by the keyboard."""
    words = NUMBER.sub(r'<td class="word" \1', WORD.sub(r'<code class="word">\1</code>', html))
    words = CODE.sub(lambda code: OPTION.sub(r'<span class="word">\g<0></span>', code[0]), words)
    return PICTURE.sub('<p tabindex="0">', words)


def on_post_page(output: str, **_: Any) -> str:
    """Gives the search its name."""
    return output.replace(DIALOG, f'{DIALOG} aria-label="Search"')


def on_post_template(output: str, **_: Any) -> str:
    """The page of what is not found comes from a template alone: it says what to do, with a link to the first page."""
    home = HOME.search(output)
    said = (
        ""
        if home is None
        else f'<p>There is no such page. Search above, or <a href="{home[1]}">begin at the first.</a></p>'
    )
    return on_post_page(output).replace(NOT_FOUND, NOT_FOUND + said)
