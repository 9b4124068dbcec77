"""``predict``: the classes of images, or their features."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_peft.cli.answers import Document, Format, LeftOut, Told, format_of, into, printed
from mlx_peft.cli.common import (
    AdapterName,
    AsJson,
    Backend,
    BackendName,
    ImageFiles,
    ImageSize,
    ModelName,
    Source,
    TokensToo,
    WeightsToo,
    backend_of,
    base_of,
    check_file,
    echo,
    echo_json,
    standard_input,
    tokens_of,
)
from mlx_peft.cli.device import Device
from mlx_peft.cli.output import reader_gone
from mlx_peft.core.errors import UserError
from mlx_peft.core.standing import is_among
from mlx_peft.core.text import counted

if TYPE_CHECKING:
    from mlx_peft.artifacts.answering import Asked
    from mlx_peft.artifacts.load import Tokens
    from mlx_peft.artifacts.predict import Features
    from mlx_peft.data.looking import Watch
    from mlx_peft.data.questions import Question, Questions
    from mlx_peft.data.stream import Pause

Given = tuple[str | None, str | None, int | None]
"""What ``--model``, ``--weights`` and ``--image-size`` say."""


Table = Annotated[
    Path | None,
    typer.Option(
        metavar="CSV", help="A table of images, and of which adapter is asked about each.", show_default=False
    ),
]
Top = Annotated[
    int | None, typer.Option(min=1, metavar="K", help="How many classes to show for each image.", show_default="1")
]
Form = Annotated[
    Format | None,
    typer.Option(metavar="table|csv|jsonl", help="How answers are written.", show_default="table, or as --out ends"),
]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write the answers.", show_default=False)]
OnCluster = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Answer on this Ray cluster; local: on one of this machine.",
        show_default=False,
    ),
]
OfFeatures = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write what the head reads, to .npz or .parquet, and no answers.", show_default=False
    ),
]


def predict(
    ctx: typer.Context,
    run: Source,
    images: ImageFiles = None,
    adapter: AdapterName = None,
    adapters: Table = None,
    top: Top = None,
    format: Form = None,
    out: Out = None,
    features: OfFeatures = None,
    model: ModelName = None,
    weights: WeightsToo = None,
    image_size: ImageSize = None,
    tokens: TokensToo = None,
    backend: Backend = None,
    device: Device = None,
    ray: OnCluster = None,
    as_json: AsJson = False,
) -> None:
    """Say what is in images.

    One that cannot be read is left out and named, and the exit status is then 1; 2 where none can be read.
    """
    given = (model, weights, image_size)
    _check(
        adapter,
        adapters,
        images,
        {"--top": top, "--format": format, "--out": out, "--ray": ray},
        features,
        (run, weights),
        as_json,
    )
    form = format_of(format, out)
    questions = _sparing(features or out, _questions(images, adapter, adapters, features is not None))
    how = (backend_of(ctx, backend, device), features is not None, given, tokens_of(tokens))
    asked, notes = _opened(run, questions, *how)
    for note in (*questions.notes, *notes):
        echo(f"note: {note}", err=True)
    left_out = LeftOut()
    if features is not None:
        _write_features(asked, questions, features, left_out, as_json)
    else:
        made = _made(asked, questions, top or 1, ray, (run, tuple(questions.adapters), questions.mixed, *how))
        _answer(asked, questions, made, form, out, left_out, as_json)
    if left_out.found:
        raise typer.Exit(1)


def _check(
    adapter: str | None,
    adapters: Path | None,
    images: list[Path] | None,
    of_answers: dict[str, object],
    features: Path | None,
    model: tuple[Path, str | None],
    as_json: bool,
) -> None:
    """Raises UserError for words that do not go together, and where a file cannot be written: before any work."""
    from mlx_peft.artifacts.embeddings import KINDS, check_kind

    reads = [os.path.expanduser(word) for word in (*model, adapters, *(images or ())) if word is not None]
    if adapters is not None and (adapter is not None or images):
        raise UserError(f"--adapters: {adapters} says itself which images there are, and which adapter each asks")
    if adapters is None and not images:
        raise UserError("no images are named: name files, folders or lists, or a table: --adapters CSV")
    if features is not None:
        if named := [name for name, value in of_answers.items() if value is not None]:
            raise UserError(f"--features writes no answers: leave {' and '.join(named)} out")
        check_file("--features", features, tuple(KINDS), reads)
        check_kind(features)
    out = of_answers["--out"]
    if as_json and of_answers["--format"] is not None and out is None:
        raise UserError("--json writes one document: leave --format out; --format jsonl writes a line for each image")
    if isinstance(out, Path):
        check_file("--out", out, (), reads)


def _questions(images: list[Path] | None, adapter: str | None, table: Path | None, bare: bool) -> Questions:
    """Raises UserError where a table asks the bare model for more than its features."""
    from mlx_peft.data.questions import about, in_table

    if table is None:
        return about(images or [], standard_input(), adapter)
    questions = in_table(table)
    if None in questions.adapters and not bare:
        raise UserError(
            f"{table}: a row names no adapter, and the bare model has no classes: name one, or write its features",
            arguments=("features",),
        )
    return questions


def _sparing(out: Path | None, questions: Questions) -> Questions:
    """The same, none of which is about the file that answers are written to: an image in a folder, a list or a table.

    Going through them raises UserError there.
    """
    from mlx_peft.data.questions import Question

    if out is None or not out.exists():
        return questions

    def each() -> Iterator[Question | Pause]:
        for question in questions.each:
            if isinstance(question, Question) and is_among(out, (question.file,)):
                raise UserError(f"{out} is one of the images, and what is written would take its place: name another")
            yield question

    return replace(questions, each=each())


def _opened(
    run: Path, questions: Questions, backend: BackendName, bare: bool, given: Given, tokens: Tokens
) -> tuple[Asked, tuple[str, ...]]:
    """Whoever answers, and notes."""
    from mlx_peft.artifacts import opening
    from mlx_peft.artifacts.answering import OneModel
    from mlx_peft.artifacts.load import load_any
    from mlx_peft.artifacts.place import is_model

    model, weights, image_size = given
    if questions.mixed:
        return opening.open_bank(
            run, questions.adapters, backend, model=base_of(*given), weights=weights, tokens=tokens
        )
    (adapter,) = questions.adapters
    if bare and adapter is None and (not run.is_dir() or is_model(run)):
        return opening.open_bare(str(run), backend, model=model, weights=weights, image_size=image_size, tokens=tokens)
    base = None if is_model(run) else base_of(*given)
    loaded = load_any(run, backend, name=adapter, model=base, weights=weights, tokens=tokens)
    return OneModel.of(loaded), loaded.notes


def opened(run: Path, adapters: Sequence[str | None], mixed: bool, *how: Any) -> Asked:
    """Whoever answers, on a host of a cluster."""
    from mlx_peft.data.questions import Questions

    return _opened(run, Questions(iter(()), adapters=tuple(adapters), mixed=mixed), *how)[0]


def _made(
    asked: Asked, questions: Questions, top: int, address: str | None, opening: tuple[Any, ...]
) -> Callable[[Watch], Iterator[dict[str, Any]]]:
    """The answers, here or on a cluster, for whoever watches."""
    if address is None:
        from mlx_peft.artifacts.predict import answers

        return lambda watch: answers(asked, questions, top, watch)
    from mlx_peft.cli.shards import answers_on

    return lambda watch: answers_on(address, opening, opened, questions, top, watch)


def _answer(
    asked: Asked,
    questions: Questions,
    made: Callable[[Watch], Iterator[dict[str, Any]]],
    form: Format,
    out: Path | None,
    left_out: LeftOut,
    as_json: bool,
) -> None:
    """Answers where they belong, each as it comes; where their reader is gone, no more are made."""
    from mlx_peft.cli.progress import watch
    from mlx_peft.data.depth import Glance

    told, glance = Told(asked.line, asked.columns, questions.mixed, questions.longest), Glance()
    with ExitStack() as stack:
        progress = stack.enter_context(watch())
        document = Document() if as_json and out is None else None
        writer = document or (printed(form, told) if out is None else stack.enter_context(into(out, form, told)))
        for result in made(progress.opening):
            writer.add(result)
            left_out.add(result)
            if "error" not in result:
                glance.add(result["image"])
            if out is None and reader_gone():
                return
    for note in glance.notes():
        echo(f"note: {note}", err=True)
    if document is not None:
        document.end()
    if out is not None:
        _written(out, left_out, {}, as_json)


def _write_features(asked: Asked, questions: Questions, out: Path, left_out: LeftOut, as_json: bool) -> None:
    from mlx_peft.artifacts.embeddings import write
    from mlx_peft.artifacts.predict import features
    from mlx_peft.cli.progress import watch

    def parts() -> Iterator[Features]:
        for part in features(asked, questions, progress.opening):
            for result in part.told:
                left_out.add(result)
            yield part

    with watch() as progress:
        dim = write(out, parts())
    _written(out, left_out, {"dim": dim, "dtype": "float32"}, as_json)


def _written(out: Path, left_out: LeftOut, facts: dict[str, object], as_json: bool) -> None:
    """What was written, in words or as a document."""
    if as_json:
        echo_json({"file": str(out), "images": left_out.read, **facts, "unreadable": left_out.found})
    else:
        what = counted(left_out.read, "image")
        echo(f"{out}  {what}" + "".join(f", {name} {value}" for name, value in facts.items()))
