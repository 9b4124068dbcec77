"""The Vision Transformer in PyTorch, file for file the mirror of ``mlx_peft.backend.models``."""

import os

import torch

# A process that is forked after torch has computed does not have the threads that it computed with, and would wait for
# them for ever. With one thread, its own, it computes; where no model is used nothing is changed by that.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
