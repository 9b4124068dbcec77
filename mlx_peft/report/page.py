"""Several images, and why a model says what it says of them, as one page of HTML that asks nothing of the network."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from mlx_peft.core.text import counted, printable

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; } td, th { padding: .2rem 1rem .2rem 0; text-align: left; vertical-align: top; }
th, td { border-bottom: 1px solid #8886; overflow-wrap: anywhere; }
img { width: 100%; height: auto; background: white; border-radius: 4px; }
p, td { max-width: 60rem; } .error { color: #c33; }
"""

READING = """
A picture has the image as the model sees it; attention rollout: how much of each patch comes into what is read at the
end, by attention alone, block after block; and what is in favour of a class: attention weighted by the gradient of the
class's logit. Colours go from the least of each image, dark, to the most of it, yellow. Where the model has fewer
tokens, the last strip has what comes to each block: several patches in one token have its mean colour and a white line
around them, patches that go around the block, or past its MLP, are dim, and patches that are gone are black.
"""


def page(title: str, entries: Sequence[tuple[Mapping[str, Any], Sequence[str]]]) -> str:
    """The page.

    Args:
        title: the model's name.
        entries: of each image what ``report.explanations`` records, and what the model says of it, line by line.
            Whatever a name in them holds, a browser shows it, and obeys none of it.
    """
    sections = "\n".join(_section(number, *entry) for number, entry in enumerate(entries))
    rows = "\n".join(_row(number, *entry) for number, entry in enumerate(entries))
    heading = f"{_text(title)}: {counted(len(entries), 'image')}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{heading}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{heading}</h1>
<p>{READING.strip()}</p>
<table>
<tr><th>image</th><th>answer</th></tr>
{rows}
</table>
{sections}
</body>
</html>
"""


def _row(number: int, entry: Mapping[str, Any], lines: Sequence[str]) -> str:
    if "error" in entry:
        return f'<tr><td>{_text(entry["image"])}</td><td class="error">{_text(entry["error"])}</td></tr>'
    return f'<tr><td><a href="#image-{number}">{_text(entry["image"])}</a></td><td>{_text(lines[0])}</td></tr>'


def _section(number: int, entry: Mapping[str, Any], lines: Sequence[str]) -> str:
    if "error" in entry:
        return ""
    name, said = _text(entry["image"]), ", ".join(map(_text, lines))
    return f"""<section id="image-{number}">
<h2>{name}</h2>
<p>{said}</p>
<img src="{quote(entry["picture"])}" alt="{name}: {said}" loading="lazy">
</section>"""


def _text(text: str) -> str:
    return html.escape(printable(text))
