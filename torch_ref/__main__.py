"""``python -m torch_ref``: the commands, on PyTorch."""

from mlx_peft.cli import torch_main

torch_main()
