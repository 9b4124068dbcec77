"""What all tests share: nothing is kept in the caches of whoever runs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set in the place of any, for the real backends."""
    from fake_learner import make_dataset

    from mlx_peft.artifacts import examine
    from mlx_peft.training import train

    for module in (train, examine):
        monkeypatch.setattr(module, "open_dataset", lambda config: make_dataset())


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A learner and data of a few hundred bytes in the place of any, and a folder for a run."""
    from fake_learner import install, make_dataset, make_experiment, make_feed, make_learner

    install(monkeypatch, make_dataset())
    yield SimpleNamespace(
        out=tmp_path / "run",
        dataset=make_dataset,
        experiment=make_experiment,
        feed=make_feed,
        learner=make_learner,
        install=lambda dataset: install(monkeypatch, dataset),
    )
