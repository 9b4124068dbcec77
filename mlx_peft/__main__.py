"""``python -m mlx_peft``: the commands, on MLX."""

from mlx_peft.cli import main

main()
