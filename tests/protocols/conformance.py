"""Both backends, the tests' own and the peer are what the protocols ask for: mypy checks each assignment here.

Nothing of this runs; ``make lint`` reads it.
"""

from __future__ import annotations

import fake_backend

from mlx_peft.backend import entry as mlx_backend
from mlx_peft.backend.model import Model as MLXModel
from mlx_peft.backend.trainer import Trainer as MLXTrainer
from mlx_peft.protocols.backend import Backend
from mlx_peft.protocols.measured import Contender, Measured
from mlx_peft.protocols.model import Model
from mlx_peft.protocols.tools import Exporter, Foreign
from mlx_peft.protocols.trainer import Trainer
from torch_ref import entry as torch_backend
from torch_ref.model import Model as TorchModel
from torch_ref.tools import foreign, peer
from torch_ref.tools.export import coreml, onnx
from torch_ref.trainer import Trainer as TorchTrainer


def models(mlx: MLXModel, torch: TorchModel, fake: fake_backend.FakeModel) -> list[Model]:
    return [mlx, torch, fake]


def trainers(mlx: MLXTrainer, torch: TorchTrainer, fake: fake_backend.FakeTrainer) -> list[Trainer]:
    return [mlx, torch, fake]


mlx: Backend = mlx_backend
torch: Backend = torch_backend
fake: Backend = fake_backend

measured: list[Measured] = [mlx, torch, fake]
compared: Contender = peer

writes_onnx: Exporter = onnx
writes_coreml: Exporter = coreml
opens: Foreign = foreign
