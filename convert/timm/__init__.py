"""timm's checkpoints, in and out."""
