"""Whole runs in a notebook on MLX."""

from __future__ import annotations

from mlx_peft.notebook.notebook import Notebook

_notebook = Notebook("mlx")

load = _notebook.load
combine = _notebook.combine
fit = _notebook.fit
evaluate = _notebook.evaluate
