"""A table for a paper: LaTeX reads it, and nothing in a name is obeyed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import experiment, make
from pylatexenc.latex2text import LatexNodes2Text, MacroTextSpec, get_default_latex_context_db
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexGroupNode, LatexMacroNode, LatexNode, LatexWalker
from pylatexenc.macrospec import MacroSpec, MacroStandardArgsParser

from mlx_peft.core.text import printable
from mlx_peft.report import gather, rows, tables
from mlx_peft.report.rows import Cell, Rows
from mlx_peft.report.study import examined

SIGNS = r"100 % of #1 & {x_1} ~ ^ \input{a} $y$ <b> [1em] * |"
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Co", "Cn", "Zl", "Zp")), max_size=30)
PDFLATEX = shutil.which("pdflatex")


CONTEXT = get_default_latex_context_db()
"""What macros say, with those that the parser does not know."""
CONTEXT.add_context_category(
    "signs",
    prepend=True,
    macros=[MacroTextSpec("textless", "<"), MacroTextSpec("textgreater", ">"), MacroTextSpec("textbar", "|"),
            MacroTextSpec("textasciicircum", "^")],
)  # fmt: skip


def table(*names: str) -> Rows:
    """What a comparison of methods of these names comes to, each with a footnote of that name."""
    cells = [[Cell(name, bold=True), Cell("3", marks=(at,)), Cell("66.93 ± 0.74", bold=at == 1), Cell(name)]
             for at, name in enumerate(names, start=1)]  # fmt: skip
    return Rows(
        above=f"Of {names[0]}",
        headings=["runs", "n", "test top-1 (%)", names[0]],
        numeric=["n", "test top-1 (%)"],
        cells=cells,
        below=(f"In bold {names[0]}",),
        notes=tuple(f"seed 1: {name}" for name in names),
    )


def nodes(found: list[LatexNode | None]) -> Iterator[LatexNode]:
    """All nodes, those in others too."""
    for node in found:
        if node is None:
            continue
        yield node
        if isinstance(node, LatexEnvironmentNode | LatexGroupNode):
            yield from nodes(node.nodelist)
        if isinstance(node, LatexMacroNode | LatexEnvironmentNode) and node.nodeargd is not None:
            yield from nodes(node.nodeargd.argnlist)


def walked(text: str) -> list[LatexNode]:
    """The nodes of a text; what is not balanced is an error."""
    walker = LatexWalker(text, tolerant_parsing=False)
    context = walker.make_parsing_state().latex_context
    context.add_context_category(
        "boxes",
        prepend=True,
        macros=[MacroSpec("resizebox", args_parser=MacroStandardArgsParser("{{{")),
                MacroSpec("parbox", args_parser=MacroStandardArgsParser("{{"))],
    )  # fmt: skip
    found, _, _ = LatexWalker(text, latex_context=context, tolerant_parsing=False).get_latex_nodes()
    return [*nodes(found)]


OURS = {
    *("caption", "centering", "resizebox", "ifdim", "else", "fi", "width", "linewidth", "\\", "toprule", "midrule"),
    *("bottomrule", "smallskip", "parbox", "footnotesize", "textbf", "pm", "times", "ldots", " "),
    *("textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar"),
    *"{}$&#%_",
}
"""The macros that a table has, whatever is in it."""


@pytest.mark.parametrize("examples", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_whatever_a_name_holds_the_table_is_balanced_and_has_no_macro_of_its(examples: int) -> None:
    settings(deadline=None, max_examples=examples)(given(st.lists(NAMES, min_size=1, max_size=3))(must_be_balanced))()


def must_be_balanced(names: list[str]) -> None:
    found = walked(rows.latex(table(SIGNS, *names)))
    assert {node.macroname for node in found if isinstance(node, LatexMacroNode)} <= OURS
    kinds = [node.environmentname for node in found if isinstance(node, LatexEnvironmentNode)]
    assert kinds[0] == "table" and set(kinds) == {"table", "tabular"}
    assert all(node.isNodeType(LatexEnvironmentNode) or node.latex_verbatim() for node in found)


@settings(deadline=None, max_examples=25)
@given(NAMES)
def test_a_name_is_set_as_it_is(name: str) -> None:
    reader = LatexNodes2Text(CONTEXT, strict_latex_spaces=True, math_mode="text")
    shown, wanted = reader.latex_to_text(rows.tex(f"{SIGNS}{name}x")), printable(f"{SIGNS}{name}x")
    assert shown.replace("–", "--") == wanted.replace("–", "--").replace("−", "-"), "TeX draws these itself"


def test_a_heading_of_several_words_stands_in_lines_and_a_long_cell_is_broken() -> None:
    text = rows.latex(Rows("", ["runs", "peak of process (MB)", "tried"], ["peak of process (MB)"],
                           [[Cell("lora"), Cell("3"), Cell("lr 0.1: 60.00; " * 9)]]))  # fmt: skip
    assert r"\begin{tabular}[b]{@{}r@{}}peak of \\ process \\ (MB)\end{tabular}" in text
    assert r"\begin{tabular}{lrp{0.6\linewidth}}" in text


@pytest.mark.slow
@pytest.mark.skipif(PDFLATEX is None, reason="no pdflatex here: apt install texlive-latex-recommended")
def test_latex_sets_the_tables_of_a_study_with_hostile_names(tmp_path: Path) -> None:
    """By pdfTeX, which is to stop at the first error; and no box is wider than the text, however many columns."""
    for name, method, share in ((SIGNS, "lora", 0.8), ("50_%", "linear", 0.6)):
        for seed in (0, 1):
            folder = tmp_path / "runs" / f"{name}-seed={seed}"
            config = experiment({"name": method}, "cifar10", seed)
            make(folder, config, share, adapter=2 * 10**7 + len(name), seconds=10.0 + len(name))
    found = gather.gathered(tmp_path / "runs")
    (tmp_path / "table.tex").write_text(tables.latex(examined(found)))
    (tmp_path / "paper.tex").write_text(
        "\\documentclass[twocolumn]{article}\n\\usepackage{booktabs}\n\\usepackage{graphicx}\n"
        "\\begin{document}\n\\input{table}\n\\end{document}\n"
    )
    assert PDFLATEX is not None
    done = subprocess.run([PDFLATEX, "-halt-on-error", "-interaction=nonstopmode", "paper.tex"], cwd=tmp_path,
                          capture_output=True, text=True, errors="replace", timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 1000
    assert "Overfull" not in done.stdout, done.stdout
