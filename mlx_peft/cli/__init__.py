"""The commands. Nothing imports them; each imports what it needs when it runs."""

from __future__ import annotations


def main() -> None:
    """``mlx-peft``: the commands, on MLX unless a file or an option says otherwise."""
    from mlx_peft.cli.process import run

    run("mlx-peft", "mlx")


def torch_main() -> None:
    """``torch-ref``: the same commands, on PyTorch."""
    from mlx_peft.cli.process import run

    run("torch-ref", "torch")
