"""The library: models and adapters in a notebook. ``torch_ref`` has the same names, so an import changes backend."""

from __future__ import annotations

from mlx_peft.backend import by_hand, methods, parameters
from mlx_peft.backend.bank import Mixer
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.backend.parameters import every, fill, sizes, stored, to_tensors
from mlx_peft.backend.program import Program
from mlx_peft.library.framework import Framework
from mlx_peft.library.library import Library

__all__ = [
    "add_adapter",
    "compiled",
    "create_model",
    "load_adapter",
    "load_adapters",
    "merge",
    "optimizer",
    "prepare",
    "remove_adapter",
    "save_adapter",
    "state_dict",
    "summary",
    "training_step",
    "unmerge",
]

LIBRARY = Library(
    Framework(
        build=VisionTransformer,
        fill=fill,
        apply=methods.apply,
        remove=methods.remove,
        merge=methods.merge,
        unmerge=methods.unmerge,
        every=lambda model: to_tensors(model, every(model)),
        stored=lambda model: to_tensors(model, stored(model)),
        load_adapter=parameters.load_adapter,
        sizes=sizes,
        count=parameters.count,
        prepare=VisionTransformer.pixels,
        optimizer=by_hand.optimizer,
        step=by_hand.step,
        mixer=Mixer,
        program=Program,
    )
)

create_model = LIBRARY.create_model
add_adapter = LIBRARY.add_adapter
remove_adapter = LIBRARY.remove_adapter
save_adapter = LIBRARY.save_adapter
load_adapter = LIBRARY.load_adapter
load_adapters = LIBRARY.load_adapters
compiled = LIBRARY.compiled
merge = LIBRARY.merge
unmerge = LIBRARY.unmerge
state_dict = LIBRARY.state_dict
summary = LIBRARY.summary
prepare = LIBRARY.prepare
optimizer = LIBRARY.optimizer
training_step = LIBRARY.training_step
