"""The models between a base and what was trained on it, measured one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from convert.adapters.peft import Adapter
from mlx_peft.artifacts.combine import Wish, made_of
from mlx_peft.artifacts.images import Images, SplitName, fitted, run_images
from mlx_peft.artifacts.ingredients import Adapters, Opened, opened
from mlx_peft.artifacts.load import Loaded, put_on_base, recipe_of
from mlx_peft.config.combination import Origin
from mlx_peft.config.methods import Full
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.data import Split, eval_batches
from mlx_peft.data.leftout import unread_notes
from mlx_peft.data.looking import Watch, unwatched
from mlx_peft.protocols.model import Model
from mlx_peft.tasks.metrics import Metrics
from mlx_peft.tasks.task import Task
from mlx_peft.training.evaluate import evaluate
from mlx_peft.training.run import RunFolder
from mlx_peft.vit.parameters import is_head

MOST = 1000
"""So many models are measured in one go: each takes as long as an evaluation."""


@dataclass(frozen=True)
class Curve:
    """What was measured.

    Attributes:
        of: what was interpolated with the base, in words.
        points: each alpha with its metrics.
        split: the images' name, their number and their digest.
        best: the first alpha with the best leading metric; None on a test split, which is there to measure what was
            chosen, and not to choose by.
    """

    of: str
    task: Task
    split: str
    images: int
    sha256: str
    points: tuple[tuple[float, Metrics], ...]
    origin: Origin | None
    notes: tuple[str, ...] = ()

    @property
    def measure(self) -> str:
        """The metric that leads."""
        return self.task.leading(self.points[0][1])

    @property
    def best(self) -> float | None:
        if self.split == "test":
            return None
        sign = -1 if self.measure == "loss" else 1
        return max(self.points, key=lambda point: (sign * point[1][self.measure], -point[1]["loss"]))[0]


def interpolate(
    adapters: Adapters,
    alphas: Sequence[float],
    wish: Wish | None = None,
    split: SplitName | None = None,
    backend: Literal["mlx", "torch"] | None = None,
    *,
    weights: str | None = None,
    overrides: Iterable[str] = (),
    watch: Watch = unwatched,
) -> Curve:
    """Measures theta_0 + a (theta_1 - theta_0) for each a: WiSE (Wortsman et al. 2022, arXiv 2109.01903).

    theta_0 are the base's weights, theta_1 those into which the adapter is merged, a quantised base as the plain
    weights that its codes stand for. The head is the adapter's at every a.

    Args:
        adapters: one, or several, which are combined first as ``wish`` says; the first that is a run has the images.
        split: None: ``val``; of other images than the run's own that have none, all or the test split.
        backend, weights, overrides: as in ``examine_splits``.

    Raises:
        UserError: no adapter is a run, the method merges into no weights, there are no such images, or none to measure.
    """
    if not 0 < len(alphas) <= MOST or not np.isfinite(alphas).all():
        raise UserError(f"there should be 1 to {MOST:,} finite numbers to measure at", arguments=("curve",))
    found = opened(adapters)
    run = next((one for one in found if RunFolder(one.given).config.exists()), None)
    if run is None:
        raise UserError(f"{found[0].given} is no run, and only a run knows its images: one of the adapters should be")
    made, scale = _whole(found, wish or Wish(), backend, weights)
    made.method.must_merge()
    first = next((one for one in found if one.adapter.model is not None), found[0])
    recipe = recipe_of(first.adapter, first.place, None)
    recipe = replace(recipe, method=made.method, backend=backend or recipe.backend)
    images, _ = run_images(run.given, overrides, watch)
    chosen = _split(images, split)
    loaded = put_on_base(made, first.place, replace(recipe, precision="float32"), weights)
    shown, notes = fitted(chosen, images, loaded, str(run.given))
    loaded.check_room(min(images.data.batch_size, shown.size))
    points = _measured(replace(loaded, recipe=recipe), shown, images, [scale * alpha for alpha in alphas], watch)
    notes += (*images.notes, *loaded.notes, *unread_notes(images.dataset.unread))
    if chosen.name == "test":
        notes += ("this is the test split: an alpha that is chosen by it is measured by nothing",)
    return Curve(
        of=" + ".join(f"{one.weight:g} x {one.name}" for one in found),
        task=loaded.task,
        split=chosen.name,
        images=shown.size,
        sha256=shown.sha256,
        points=tuple(zip(map(float, alphas), points, strict=True)),
        origin=made.origin,
        notes=tuple(dict.fromkeys(notes)),
    )


def _whole(
    found: Sequence[Opened], wish: Wish, backend: Literal["mlx", "torch"] | None, weights: str | None
) -> tuple[Adapter, float]:
    """The adapter at a = 1, and what a is multiplied with: one alone need not be of a method whose updates add up."""
    if len(found) == 1 and wish == Wish():
        return found[0].adapter, found[0].weight
    return made_of(found, wish, backend, weights=weights), 1.0


def _split(images: Images, wanted: SplitName | None) -> Split:
    if wanted is None and (images.own or "val" in images.dataset.splits):
        wanted = "val"
    return images.split(wanted)


def _measured(loaded: Loaded, shown: Split, images: Images, shares: Sequence[float], watch: Watch) -> list[Metrics]:
    """The metrics of the models that have these shares of what was trained."""
    model, before, after = _ends(loaded)
    found = []
    for number, share in enumerate(shares):
        watch("measuring", number * shown.size, len(shares) * shown.size)
        model.load_adapter(
            {name: tensor + np.float32(share) * (after[name] - tensor) for name, tensor in before.items()}
        )
        batches = eval_batches(shown, images.data, loaded.preprocessing, loaded.image_size)
        found.append(evaluate(model, batches, loaded.task, len(loaded.classes)))
    watch("measuring", len(shares) * shown.size, len(shares) * shown.size)
    return found


def _ends(loaded: Loaded) -> tuple[Model, Tensors, Tensors]:
    """A plain model whose every tensor can be set, and its tensors at a = 0 and a = 1, with the same head."""
    base, recipe, classes = loaded.base, loaded.recipe, len(loaded.classes)
    quantized = base.quantization is not None
    after = loaded.model.merged(dequantize=quantized)
    plain = recipe.build_base(base, classes).merged(dequantize=quantized)
    before = {name: after[name] if is_head(name) else plain.get(name, np.zeros_like(after[name])) for name in after}
    free = replace(recipe, method=Full(), quantize=None, qat=None)
    return free.build(replace(base, tensors=before, quantization=None), classes), before, after
