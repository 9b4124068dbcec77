"""``convert``: a checkpoint from anywhere as a file of any format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mlx_peft.cli import completing
from mlx_peft.cli.common import AdapterName, AsJson, Backend, WeightsToo, backend_of, echo, echo_json

if TYPE_CHECKING:
    from mlx_peft.artifacts.convert import Converted
    from mlx_peft.artifacts.proof import Proof

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="A file, a folder, a run, a timm name or OWNER/REPOSITORY.", show_default=False
    ),
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="What to write.", show_default=False)]
Format = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="FORMAT",
        help="timm, transformers, torchvision, mlx, onnx, coreml; peft, peft-transformers, peft-transformers4, "
        "peft-torchvision.",
        show_default=False,
    ),
]
ModelOfSource = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="The model, where SOURCE does not say it.",
        show_default=False,
        autocompletion=completing.models,
    ),
]
Fields = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A field of the architecture: num_heads=6.", show_default=False),
]
ImageSize = Annotated[
    int | None, typer.Option(metavar="PIXELS", help="Resize the position grid for it.", show_default=False)
]
Part = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which model, in a file of several: teacher.", show_default=False)
]
Floats = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(metavar="float32|bfloat16|float16", help="Of the weights in the file.", show_default=False),
]
Bits = Annotated[
    int | None, typer.Option(metavar="8|6|5|4|3|2", help="Quantise the blocks; --to mlx.", show_default=False)
]
GroupSize = Annotated[int, typer.Option(metavar="32|64|128", help="Inputs that share a scale and a bias.")]
Alpha = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Of an old LoRA-ViT file, which does not say it.", show_default="none"),
]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Do not compare the logits of both sides.")]


def convert(
    ctx: typer.Context,
    source: Source,
    out: Out,
    to: Format,
    model: ModelOfSource = None,
    weights: WeightsToo = None,
    args: Fields = None,
    image_size: ImageSize = None,
    part: Part = None,
    dtype: Floats = None,
    bits: Bits = None,
    group_size: GroupSize = 64,
    adapter: AdapterName = None,
    alpha: Alpha = None,
    no_verify: NoVerify = False,
    backend: Backend = None,
    as_json: AsJson = False,
) -> None:
    """Convert a ViT into another format, with proof."""
    from mlx_peft.artifacts.convert import convert as convert_source
    from mlx_peft.artifacts.targets import TARGETS
    from mlx_peft.config.files import override
    from mlx_peft.config.quantization import from_options
    from mlx_peft.core.errors import UserError, suggest

    if to not in TARGETS:
        near = suggest(to, TARGETS) or f"; known: {', '.join(TARGETS)}"
        raise UserError(f"unknown format {to!r}{near}", arguments=("to",))
    done = convert_source(
        source,
        out,
        to,
        model=model,
        weights=weights,
        args=override(args or []).values,
        image_size=image_size,
        part=part,
        adapter=adapter,
        alpha=alpha,
        dtype=dtype,
        quantization=None if bits is None else from_options(bits, group_size),
        verify=not no_verify,
        backend=backend_of(ctx, backend),
    )
    if as_json:
        echo_json(summary(done))
    else:
        show(done)


def show(done: Converted) -> None:
    base = done.source.asked
    echo(f"{base.source}: {done.source.kind}, as {base.name}, {base.architecture.img_size} px")
    for note in done.notes:
        echo(f"note: {note}")
    for file, size in done.files.items():
        echo(f"{file}  {size:,} bytes")
    echo(f"open it with: {done.opened}")
    if done.proof is None:
        echo("not proved, as was asked")
    else:
        show_proof(done.proof)


def show_proof(proof: Proof) -> None:
    for name, difference in {**proof.rows, **proof.exported}.items():
        echo(f"  {difference:.1e}  {name}")
    for name, difference in proof.change.items():
        echo(f"{name}: the logits change by {100 * difference:.2g} %")
    for reason in proof.unproved:
        echo(f"not compared: {reason}")
    if proof.largest is None:
        echo("nothing could be compared here: the conversion is not proved")
    else:
        echo(f"proved on noise images: largest relative difference {proof.largest:.1e}")


def summary(done: Converted) -> dict[str, Any]:
    """What ``--json`` prints."""
    base, proof = done.source.asked, done.proof
    return {
        "source": {
            "path": base.source,
            "kind": done.source.kind,
            "model": base.name,
            "classes": len(done.source.classes),
        },
        "architecture": base.architecture.model_dump(mode="json"),
        "preprocessing": base.preprocessing.model_dump(mode="json"),
        "to": done.to,
        "files": {str(file): size for file, size in done.files.items()},
        "opened": done.opened,
        "notes": list(done.notes),
        "proof": proof
        and {
            "largest": proof.largest,
            "rows": proof.rows,
            "exported": proof.exported,
            "change": proof.change,
            "unproved": proof.unproved,
        },
    }
