"""How much a step of an experiment computes, estimated before its weights are read and its backend is loaded."""

from __future__ import annotations

from mlx_peft.config.schema import Experiment
from mlx_peft.core import cores, threads
from mlx_peft.core.errors import UserError
from mlx_peft.vit.registry import altered, find


def threads_worth(experiment: Experiment) -> int:
    """As many threads as the products of the model that it names keep busy; every core's where they cannot be known:
    weights of a file may be of another architecture, which is told once they are read."""
    model = experiment.model
    size = {} if model.image_size is None else {"img_size": model.image_size}
    try:
        architecture = altered(find(model.name).architecture, {**model.args, **size}, "model.args")
    except UserError:
        return cores.whole()
    images = experiment.data.batch_size // experiment.train.accumulate
    return threads.worth(images * len(architecture.places), architecture.embed_dim)
