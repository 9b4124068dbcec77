"""Every command, program and experiment in README.md and docs is run, or it is said here why it cannot be."""

import hashlib
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch  # before MLX, or it gets the wrong BLAS
import yaml
from comparing import relative
from documentation.conftest import ARGS, SIZE, run
from documentation.not_run import NOT_RUN
from documentation.snippets import SNIPPETS, Snippet
from documentation.tables import DRAWN, EARLIER, FEW, LAUNCHED, MADE, MORE, SERVERS, SLOW, STOPPED, THEIRS, WORDS
from sketching import undrawn

from mlx_peft.artifacts.targets import TARGETS
from mlx_peft.config import suite

LANGUAGES = {"", "yaml", "python", "mermaid", "sh"}
"""Commands have none. Of pictures: tests/house/test_picture.py. What a shell sends to a server, and
what it times: test_serving.py and test_started.py."""
ELSEWHERE = {*SERVERS, *LAUNCHED}
"""Commands that test_started.py runs."""


def of_language(language: str) -> list:
    chosen = [one for one in SNIPPETS if one.language == language and one.title not in THEIRS]
    return [pytest.param(snippet, id=str(snippet)) for snippet in chosen]


def filled_in(line: str) -> str:
    """A command with words in the place of WORDS, the first of several choices, and what MORE has for it."""
    for word, value in WORDS.items():
        line = re.sub(rf"(?<![\w/]){word}(?![\w])", value, line)
    return re.sub(r"'?([\w-]+)(\|[\w-]+)+'?", r"\1", line)


def must_run(snippet: Snippet, slow: bool, world: Path) -> None:
    """Runs the commands of a snippet, one after the other."""
    if made := MADE.get((snippet.page, snippet.heading)):
        shutil.rmtree(world / made) if (world / made).is_dir() else (world / made).unlink()
    if (snippet.page, snippet.heading) in STOPPED:
        shutil.rmtree(world / "runs" / "mine")
        shutil.copytree(EARLIER / "stopped" / "linear-torch", world / "runs" / "mine")
    if (snippet.page, snippet.heading) in FEW:
        for label in (world / "photos").iterdir():
            for photo in sorted(label.iterdir())[1:]:
                photo.unlink()
    for line in snippet.commands:
        if line in NOT_RUN or line in ELSEWHERE or (line in SLOW) != slow:
            continue
        if line.startswith("sha256sum -c "):
            digests_fit(world / "runs" / "mine" / line.split()[-1])
            continue
        done = run(f"{filled_in(line)} {MORE.get(line, '')}")
        assert done.exit_code == 0, f"{snippet}: {line}\n{done.output}\n{done.exception!r}"


def digests_fit(sums: Path) -> None:
    """What ``sha256sum -c`` finds out, which a Mac may not have."""
    lines = [line.split("  ") for line in sums.read_text().splitlines()]
    assert lines
    assert all(hashlib.sha256((sums.parent / name).read_bytes()).hexdigest() == digest for digest, name in lines)


@pytest.mark.parametrize("snippet", of_language(""))
def test_the_commands_do_what_they_say(snippet, world):
    with nullcontext() if snippet.page in DRAWN else undrawn():
        must_run(snippet, False, world)


@pytest.mark.slow
@pytest.mark.parametrize("snippet", [param for param in of_language("") if param.values[0].page not in DRAWN])
def test_so_they_do_where_their_pictures_are_drawn(snippet, world):
    must_run(snippet, False, world)


@pytest.mark.slow
@pytest.mark.parametrize("snippet", [param for param in of_language("") if SLOW & {*param.values[0].commands}])
def test_the_commands_that_take_long_do_what_they_say(snippet, world):
    must_run(snippet, True, world)


@pytest.mark.parametrize("snippet", of_language("yaml"))
def test_an_experiment_or_a_suite_is_one(snippet, world):
    """Sections alone are put into the README's experiment; keys that are there twice are choices."""
    for number, text in enumerate(choices(snippet.text)):
        file = world / f"{number}.yaml"
        file.write_text(text)
        document = yaml.safe_load(text)
        if "runs" in document:
            file.write_text(f"base: quickstart\n{text}" if "base" not in document else text)
            assert suite.load(file).runs
            continue
        file.write_text(text if "model" in document else f"base: readme.yaml\n{text}")
        done = run(f"mlx-peft config validate {file}")
        assert done.exit_code == 0, f"{snippet}\n{text}\n{done.output}"


def choices(text: str) -> list[str]:
    lines = text.splitlines(keepends=True)
    keys = [line.partition(":")[0] for line in lines]
    return lines if len(lines) > 1 and len({*keys}) == 1 else [text]


NAME = "deit_tiny_patch16_224.fb_in1k"
INSTEAD = {f'mp.create_model("{NAME}", ': f'mp.create_model("{NAME}", image_size={SIZE}, args={ARGS}, '}
"""In a program, what has a small model here."""

NOTEBOOK = "In a notebook"
BACKENDS = 1e-4
"""What the losses of a loop, and the logits of what it trained, may differ by from backend to backend."""
PEFT = 1e-5
"""Relative, float32: the same model in two implementations."""


@pytest.fixture
def small_timm(monkeypatch):
    """timm's own models are small ones of the same names."""
    import timm

    create, small = timm.create_model, {**ARGS, "img_size": SIZE}
    monkeypatch.setattr(
        timm, "create_model", lambda name, **options: create(name, **options, **({} if ":" in name else small))
    )


def _alone(snippet: Snippet) -> bool:
    """Whether a program needs neither another backend beside it nor a server."""
    return snippet.heading != NOTEBOOK and snippet.page != "docs/serving.md"


def executed(snippet: Snippet, world: Path) -> list[dict]:
    """The names that a program leaves, in each backend, where it names another in a comment."""
    text, found = snippet.text, []
    for before, after in INSTEAD.items():
        text = text.replace(before, after)
    for program in programs(text):
        images, labels = np.zeros((2, SIZE, SIZE, 3), np.uint8), np.arange(2)
        given = {"images": images, "labels": labels, "names": [f"class {number}" for number in range(10)]}
        given |= {"x": torch.zeros(2, 3, SIZE, SIZE), "y": torch.arange(2)}  # as timm's own transform makes them
        exec(compile(program, str(snippet), "exec"), given)
        assert given["model"] is not None
        for folder in ("adapter", "runs/again"):
            shutil.rmtree(world / folder, ignore_errors=True)
        found.append(given)
    return found


@pytest.mark.parametrize("snippet", [param for param in of_language("python") if _alone(param.values[0])])
def test_a_program_runs(snippet, world, small_timm):
    executed(snippet, world)


def test_the_notebook_gives_the_same_in_both_backends_and_in_peft(world, small_timm):
    (snippet,) = (one for one in SNIPPETS if one.language == "python" and one.heading == NOTEBOOK)
    assert len(snippet.text.splitlines()) <= 22 and snippet.page == "README.md"
    ours, theirs = executed(snippet, world)
    assert {ours["mp"].__name__, theirs["mp"].__name__} == {"mlx_peft", "torch_ref"}
    assert np.isfinite(ours["losses"]).all() and ours["losses"][-1] < ours["losses"][0]
    np.testing.assert_allclose(ours["losses"], theirs["losses"], atol=BACKENDS)
    assert ours["answer"].name == theirs["answer"].name and ours["answer"].name in ours["again"].classes
    for given in (ours, theirs):
        x = np.array(given["mp"].prepare(given["again"], given["images"][:8]), copy=True)
        with torch.no_grad():
            logits = given["theirs"](torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
        again = given["again"].predict(given["images"][:8])
        assert relative(np.stack([one.logits for one in again]), logits) <= PEFT
        np.testing.assert_array_equal(again.probabilities, given["model"].predict(given["images"][:8]).probabilities)


def programs(text: str) -> list[str]:
    """A program, and what it is with the import that its first line has for another backend."""
    first, _, rest = text.partition("\n")
    _, other, replaced = first.partition("  # or: ")
    return [text, f"{replaced}\n{rest}"] if other else [text]


def test_nothing_is_of_a_language_that_is_not_run():
    assert {snippet.language for snippet in SNIPPETS} <= LANGUAGES


def test_what_is_said_of_commands_is_said_of_some_that_are_there():
    lines = {line for snippet in SNIPPETS if not snippet.language for line in snippet.commands}
    assert not [line for line in (*NOT_RUN, *MORE, *SLOW, *ELSEWHERE) if line not in lines]
    headings = {(snippet.page, snippet.heading) for snippet in SNIPPETS}
    assert {*MADE, *STOPPED, *FEW} <= headings
    assert {*THEIRS} <= {snippet.title for snippet in SNIPPETS}
    programs = [snippet.text for snippet in SNIPPETS if snippet.language == "python"]
    assert all(any(text in program for program in programs) for text in INSTEAD)


def test_every_choice_of_a_format_is_one():
    (line,) = (line for snippet in SNIPPETS if not snippet.language for line in snippet.commands if " --to '" in line)
    assert line.split("'")[1].split("|") == list(TARGETS)
