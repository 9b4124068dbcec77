"""``serve``: answers over HTTP."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_peft.cli.common import Backend, BackendName, backend_of, echo, read_experiment
from mlx_peft.cli.device import Device
from mlx_peft.cli.estimate import bytes_of
from mlx_peft.cli.train import default_run, train
from mlx_peft.core import cores, threads
from mlx_peft.core.errors import Command, UserError

if TYPE_CHECKING:
    from mlx_peft.serve.engine import Engine
    from mlx_peft.serve.settings import Settings

INSTALL = "pip install 'mlx-peft[serve]'"
NEEDED = ("fastapi", "uvicorn", "httptools", "python_multipart", "prometheus_client")

Source = Annotated[
    str,
    typer.Argument(
        metavar="DIR|RUN|MODEL",
        help="A folder of adapters or runs, one of either, a model's folder, or the recipe quickstart.",
        show_default=False,
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="That adapters in memory may have: 2GB.", show_default="half of the memory"),
]
Delay = Annotated[float, typer.Option(min=0, max=1000, metavar="MS", help="To wait for images that are being decoded.")]
Tokens = Annotated[
    list[Path] | None,
    typer.Option(
        "--token",
        metavar="FILE",
        help="Who may ask what: in each line a token and adapters, or *. May be repeated.",
        show_default="anybody anything",
    ),
]
Origins = Annotated[
    list[str] | None,
    typer.Option(
        "--cors", metavar="ORIGIN", help="Whose pages may read answers. May be repeated.", show_default="none"
    ),
]
Names = Annotated[
    list[str] | None,
    typer.Option(
        "--name", metavar="HOST", help="A name of the server behind a proxy. May be repeated.", show_default=False
    ),
]
Admin = Annotated[
    str | None,
    typer.Option(
        "--admin-token",
        metavar="TOKEN",
        envvar="MLX_PEFT_ADMIN_TOKEN",
        help="What loads adapters and lets them go.",
        show_default="nobody can",
    ),
]


def serve(
    ctx: typer.Context,
    source: Source,
    backend: Backend = None,
    device: Device = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 is everywhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="0: any that is free.")] = 8000,
    adapters_budget: Budget = None,
    max_batch: Annotated[
        int, typer.Option(min=1, max=1024, metavar="N", help="Images that are answered at once.")
    ] = 32,
    max_delay: Delay = 2.0,
    queue: Annotated[int, typer.Option(min=1, metavar="N", help="Images that may wait.")] = 256,
    deadline: Annotated[float, typer.Option(min=0.001, metavar="SECONDS", help="For an answer.")] = 30.0,
    admin_token: Admin = None,
    token: Tokens = None,
    cors: Origins = None,
    name: Names = None,
) -> None:
    """Answer over HTTP, many adapters on one model.

    It ends at Ctrl-C or SIGTERM, once what it has taken in is answered.
    """
    _must_have_packages()
    from mlx_peft.serve.running import listening, serve, url_of
    from mlx_peft.serve.settings import LOOPBACK, Settings
    from mlx_peft.serve.tokens import must_be_token, read_tokens

    if admin_token is not None:
        must_be_token(admin_token, "--admin-token")
    known = (*LOOPBACK, *(name or ())) if host in LOOPBACK else tuple(name or ())
    settings = Settings(
        max_batch=max_batch, max_delay=max_delay / 1000, queue=max(queue, max_batch), deadline=deadline, hosts=known,
        origins=tuple(cors or ()), admin_token=admin_token, tokens=read_tokens(token) if token else None,
    )  # fmt: skip
    budget = None if adapters_budget is None else bytes_of(adapters_budget, "--adapters-budget")
    chosen = backend_of(ctx, backend, device)
    with listening(host, port) as there:
        place = _trained(ctx, source, chosen)
        threads.at_most(max(2, cores.whole() - 1))  # the other reads requests and decodes; of two both compute
        engine, notes = _engine(place, chosen, budget, settings)
        url = url_of(host, there.getsockname()[1])

        def told(more: Sequence[str]) -> None:
            for note in (*notes, *more, *_warnings(host, settings)):
                echo(f"note: {note}", err=True)
            echo(f"serving {', '.join(engine.served.names[:10])} at {url}")

        serve(engine, settings, there, told)


def _must_have_packages() -> None:
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"the server needs packages that are missing ({', '.join(missing)}): {INSTALL}")


def _trained(ctx: typer.Context, source: str, backend: BackendName) -> str:
    """What is to be opened: of a recipe its run, which is trained first where it is not there and nothing has to be
    downloaded for it."""
    from mlx_peft.config import recipes
    from mlx_peft.training.run import RunFolder

    if os.path.exists(source) or source not in recipes.names():
        return source
    experiment = read_experiment(ctx, source, None, backend)
    run = RunFolder(default_run(source, experiment, None))
    if run.read_result() is None:
        if not experiment.model.is_shipped:
            raise UserError(
                f"{source} is a recipe, and there is no finished run of it in {run.path}",
                command=Command("to train it", ("train", source)),
            )
        echo(f"there is no finished run in {run.path} yet: training it, which takes a minute at most", err=True)
        train(ctx, source, backend=backend, out=run.path, resume=run.config.exists())
    return str(run.path)


def _warnings(host: str, settings: Settings) -> list[str]:
    """What whoever starts the server should know of who may ask it."""
    from mlx_peft.serve.settings import LOOPBACK

    if host in LOOPBACK or settings.tokens is not None:
        return []
    return ["everybody who reaches this address may ask every adapter: --token FILE says who may"]


def _engine(place: str, backend: BackendName, budget: int | None, settings: Settings) -> tuple[Engine, tuple[str, ...]]:
    from mlx_peft.serve.engine import Engine
    from mlx_peft.serve.opening import opened

    served, notes = opened(place, backend, budget)
    return Engine(served, settings), notes
