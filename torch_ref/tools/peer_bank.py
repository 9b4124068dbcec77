"""Many adapters of Hugging Face's peft on timm's model, as ``bench inference`` sets them beside a bank."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch

from convert.base import Base
from mlx_peft.config.schema import Experiment
from torch_ref.device import version
from torch_ref.parameters import to_numpy
from torch_ref.tools.peer import Peer

__all__ = ["PeerBank", "build_bank", "version"]


class PeerBank(Peer):
    """One model with adapters of the experiment's method, drawn anew, by name."""

    def __init__(self, experiment: Experiment, num_classes: int, base: Base, names: Sequence[str]):
        super().__init__(experiment, num_classes, base)
        config = copy(self.model.peft_config["default"])
        config.init_lora_weights = False
        for name in names:
            self.model.add_adapter(name, config)
        self.model.eval()

    @torch.inference_mode()
    def mixed(self, images: np.ndarray, adapters: Sequence[str]) -> np.ndarray:
        return to_numpy(self.model(self._pixels(images), adapter_names=list(adapters)))

    def switch(self, adapter: str) -> None:
        self.model.set_adapter(adapter)


def build_bank(experiment: Experiment, num_classes: int, base: Base, names: Sequence[str]) -> PeerBank:
    """The model on ``device()``, with all its adapters."""
    return PeerBank(experiment, num_classes, base, names)
