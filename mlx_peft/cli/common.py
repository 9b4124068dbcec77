"""What several commands share: their arguments, and reading the experiment that they name."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal, TextIO

import typer

from mlx_peft.cli import completing
from mlx_peft.cli.output import reader_gone
from mlx_peft.core.errors import UserError
from mlx_peft.core.json_io import to_json
from mlx_peft.core.standing import is_among, passage
from mlx_peft.core.text import printable_lines

if TYPE_CHECKING:
    from mlx_peft.artifacts.load import Tokens
    from mlx_peft.artifacts.merge import Written
    from mlx_peft.config.schema import Experiment, Model

BackendName = Literal["mlx", "torch"]

Config = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="A YAML file, or a recipe's name: see `ls recipes`.",
        show_default=False,
        autocompletion=completing.recipes,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Values over CONFIG's: method.rank=16.",
        show_default=False,
        autocompletion=completing.overrides,
    ),
]
Backend = Annotated[
    BackendName | None,
    typer.Option("--backend", metavar="mlx|torch", help="What computes: mlx or torch.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output, nothing else.")]
Busy = Annotated[
    bool, typer.Option("--busy", help="Record on a busy machine too, with what others take of it beside the times.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.", show_default=False)]
RunOrAdapter = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="A finished run, an adapter, or a folder of several of either.", show_default=False
    ),
]
Source = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A finished run, an adapter, a folder of several of either, or a model.",
        show_default=False,
    ),
]
ImageFiles = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="IMAGE",
        help="Image files, folders of them at any depth, Parquet files, lists (.txt, a path a line); - reads a list.",
        show_default=False,
    ),
]
AdapterName = Annotated[
    str | None,
    typer.Option("--adapter", metavar="NAME", help="Which one, where the folder holds several.", show_default=False),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="The model of an adapter that names none.",
        show_default=False,
        autocompletion=completing.models,
    ),
]


STDIN, STDOUT, STDERR = range(3)
"""The numbers of the standard streams' files."""


def weights_option(also: str = "") -> Any:
    return typer.Option(
        "--weights",
        metavar="WEIGHTS",
        help=f"Where a run's weights are now, if they are not found{also}.",
        show_default=False,
    )


Weights = Annotated[str | None, weights_option()]
WeightsToo = Annotated[str | None, weights_option("; or those of --model")]
"""Of a command that may be given the model which an adapter does not name."""

ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size", min=1, metavar="PIXELS", help="That --model was trained at.", show_default="the model's own"
    ),
]


TokensToo = Annotated[
    str | None,
    typer.Option(
        "--tokens",
        metavar="REDUCER",
        help="Fewer tokens: 'tome r=13', or none. See `ls tokens`.",
        show_default="as it was trained",
    ),
]
"""Of a command that opens what was trained, with its own reducer or another."""


def tokens_of(text: str | None) -> Tokens:
    """What ``--tokens`` names. Raises UserError where there is no such reducer."""
    from mlx_peft.config.tokens_text import reducer_of

    return "own" if text is None else reducer_of(text)


def base_of(name: str | None, weights: str | None, image_size: int | None = None) -> Model | None:
    """The model that ``--model`` and what goes with it name, or None: of an adapter that names none itself.

    Raises UserError for what goes with it alone, and for what can be no name.
    """
    from mlx_peft.config.schema import Model
    from mlx_peft.core.problems import validated

    if name is None and image_size is not None:
        raise UserError("--image-size needs --model: the name of the model that the adapter belongs to")
    values = {"name": name, "weights": weights or "timm", "image_size": image_size}
    return None if name is None else validated(Model, "--model", values)


def read_experiment(
    ctx: typer.Context, config: str, overrides: list[str] | None, backend: BackendName | None = None
) -> Experiment:
    """The experiment that a command line describes, its names of models and data sets checked too."""
    from mlx_peft.config import files, recipes

    return files.load(recipes.locate(config), **reading(ctx, overrides, backend))


def reading(ctx: typer.Context, overrides: list[str] | None, backend: BackendName | None) -> dict[str, Any]:
    """What a command line says of how a file is to be read: the arguments of ``files.load``."""
    from convert.named import known
    from mlx_peft.data import find

    chosen = [f"backend={backend}"] if backend else []
    return {
        "overrides": [*(overrides or []), *chosen],
        "defaults": {"backend": ctx.obj},
        "checks": {"model.name": known, "data.name": find},
    }


def backend_of(ctx: typer.Context, chosen: BackendName | None, device: str | None = None) -> BackendName:
    """The backend that is asked for, or the command's own: ``torch-ref`` opens what MLX trained with torch.

    It computes on the device from here on. Raises UserError where that is not here.
    """
    from mlx_peft.protocols.loading import load_backend

    name: BackendName = chosen or ctx.obj
    if device is not None:
        load_backend(name).use(device)
    return name


def files_in(folder: Path) -> dict[str, int]:
    """The files that were written into a folder, with their bytes."""
    return {str(file): file.stat().st_size for file in sorted(folder.iterdir())}


def echo_files(folder: Path) -> None:
    """The same for a person, a line each."""
    for file, size in files_in(folder).items():
        echo(f"{file}  {size:,} bytes")


def written_facts(out: Path, written: Written) -> dict[str, Any]:
    """What ``--json`` says of a model's folder."""
    quantization = written.quantization
    return {
        "out": str(out),
        "quantization": None if quantization is None else quantization.model_dump(mode="json"),
        "sqnr": written.sqnr,
        "logits_change": written.logits,
        "in_timm": written.in_timm,
        **({} if written.tokens is None else {"tokens": written.tokens.model_dump(mode="json")}),
        "files": files_in(out),
    }


def echo_written(out: Path, written: Written) -> None:
    """The files of a model's folder, and what quantising it changed."""
    from mlx_peft.config.quantization import described

    if written.sqnr:
        width = max(map(len, written.sqnr))
        echo(f"{'layer':<{width}}  SQNR")
        for path, decibels in written.sqnr.items():
            echo(f"{path:<{width}}  {decibels:.1f} dB")
    if written.logits is not None:
        echo(
            f"quantised to {described(written.quantization)}; on noise images the logits change by "
            f"{100 * written.logits:.2f} %"
        )
    if written.tokens is not None:
        echo(f"its config.json says {written.tokens}, which mlx-peft uses; timm passes it over, and takes all tokens")
    echo_files(out)


def check_file(
    option: str, path: Path, suffixes: Sequence[str] = (".png",), reads: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Before any work: that such a file can be written there, whatever its suffix where none is said.

    Raises UserError at another suffix, without a folder, and where what is there must not be replaced: a device or a
    pipe, what the command prints to, the files that it ``reads``, and those of a run.
    """
    from mlx_peft.training.taken import is_of_a_run

    if suffixes and path.suffix.lower() not in suffixes:
        raise UserError(f"{option}: {path} should end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise UserError(f"{option}: {path} is a folder")
    if not path.parent.is_dir():
        raise UserError(f"{option}: there is no folder {path.parent} to write {path.name} in")
    if (kind := passage(path)) is not None:
        raise UserError(f"{option}: {path} is {kind}, and a file would be put in its place: name a file")
    if is_among(path, reads) or is_among(path, (STDIN,)):
        raise UserError(f"{option}: {path} is what the command reads: name another file")
    if path.exists() and is_of_a_run(path):
        raise UserError(f"{option}: {path} is a file of a run: name another file")
    if is_among(path, (STDOUT, STDERR)):
        raise UserError(f"{option}: {path} is what the command prints to: name another file")


def check_apart(option: str, path: Path, root: Path) -> None:
    """Before any work: raises UserError where a picture would take the place of one in the folders below ``root``."""
    if path.exists() and root.resolve() in path.resolve().parent.parents:
        raise UserError(f"{option}: {path} is there, among the images of {root}: name another file")


def echo(text: object, *, err: bool = False) -> None:
    """Prints a text of one or several lines; whatever a name in it holds, a terminal obeys none of it.

    Where the reader of the answer is gone, no more is said about it on standard error.
    """
    if err and reader_gone():
        return
    typer.echo(f"{printable_lines(str(text))}\n", err=err, nl=False)


def echo_json(value: Any) -> None:
    """Prints one JSON document; in ASCII where the encoding of standard output is not UTF-8.

    Raises UserError for a number that JSON has no word for.
    """
    try:
        text = to_json(value, ascii=not unicode_out())
    except ValueError as error:
        raise UserError(f"the result holds NaN or an infinity, which JSON cannot hold: {error}") from None
    typer.echo(f"{text}\n", nl=False)


def standard_input() -> BinaryIO | None:
    """Its bytes; None where whoever started the process closed it."""
    stream: TextIO | None = sys.stdin
    return None if stream is None else stream.buffer


def unicode_out() -> bool:
    """Whether the encoding of standard output is UTF-8."""
    return (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"


def echo_file(text: str) -> None:
    """Prints what a file is to hold: as it is where it goes to one, and as ``echo`` where a person reads it."""
    typer.echo(printable_lines(text) if sys.stdout.isatty() else text, nl=False)
