"""A run that replaces another destroys nothing that it needs, and nothing that is not a run's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.training.train import train


@pytest.fixture
def on(engine: SimpleNamespace) -> Callable[[Path], Experiment]:
    """An experiment whose base is a run, merged."""

    def made(run: Path) -> Experiment:
        plain = engine.experiment(epochs=1)
        return plain.model_copy(update={"model": plain.model.model_copy(update={"weights": str(run)})})

    return made


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_base_of_the_base_is_not_replaced(engine: SimpleNamespace, on: Callable[[Path], Experiment]) -> None:
    first, second, third = (engine.out.with_name(name) for name in ("first", "second", "third"))
    train(engine.experiment(epochs=1), first)
    train(on(first), second)
    train(on(second), third)
    before = files(first)
    for base in (second, third):
        with pytest.raises(UserError, match=rf"first is not replaced: model\.weights stands on {first}, which lies"):
            train(on(base), first, overwrite=True)
    assert files(first) == before
    assert train(engine.experiment(epochs=2), third, overwrite=True)["status"] == "finished"


def test_a_link_is_followed(engine: SimpleNamespace, on: Callable[[Path], Experiment]) -> None:
    run, link = engine.out, engine.out.with_name("link")
    train(engine.experiment(epochs=1), run)
    link.symlink_to(run)
    for base, out in ((link, run), (run, link)):
        with pytest.raises(UserError, match=rf"model\.weights is {base}, which lies in it"):
            train(on(base), out, overwrite=True)


@pytest.mark.parametrize(
    "name",
    [
        ".git/f", ".gitignore", ".cache", "adapter/notes.txt", "adapter/.git/f", "checkpoint/kept.safetensors",
        "evaluation/thoughts.md", "epochs-3/notes.txt", "epochs-3/adapter/notes.txt", "result.json/inside",
    ],
)  # fmt: skip
def test_what_is_not_a_runs_keeps_the_folder(engine: SimpleNamespace, name: str) -> None:
    train(engine.experiment(epochs=1), engine.out)
    if name.startswith("result.json"):
        (engine.out / "result.json").unlink()
    (engine.out / name).parent.mkdir(exist_ok=True, parents=True)
    (engine.out / name).write_text("mine")
    with pytest.raises(UserError, match=r"besides a run it holds "):
        train(engine.experiment(epochs=2), engine.out, overwrite=True)
    assert (engine.out / name).read_text() == "mine"


def test_what_a_killed_process_and_the_pictures_left_is_a_runs(engine: SimpleNamespace) -> None:
    train(engine.experiment(epochs=1), engine.out)
    train(engine.experiment(epochs=2), engine.out, resume=True)
    names = (
        *(".config.yaml.tmp", "checkpoint/.last.safetensors.tmp", ".adapter.x3_a.partial/new/adapter_config.json"),
        *("evaluation/test.json", "evaluation/test-confusion.csv", "evaluation/test-classes.pdf"),
        *("ranks.png", "ranks.pdf", "output-lost.txt", ".DS_Store", "epochs-1/.DS_Store"),
        *("evaluation/val-reliability.png", "events.out.tfevents.1.host.2.v2", ".epochs-1.abc.partial/.lock"),
    )
    for name in names:
        (engine.out / name).parent.mkdir(exist_ok=True, parents=True)
        (engine.out / name).touch()
    assert train(engine.experiment(epochs=1), engine.out, overwrite=True)["status"] == "finished"
    assert not (engine.out / "evaluation").exists()
