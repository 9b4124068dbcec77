"""Whole runs in a notebook on PyTorch."""

from __future__ import annotations

from mlx_peft.notebook.notebook import Notebook

_notebook = Notebook("torch")

load = _notebook.load
combine = _notebook.combine
fit = _notebook.fit
evaluate = _notebook.evaluate
