"""What is known of the patches of an image, painted over it: arrays of pixels in, arrays of pixels out."""

from __future__ import annotations

import numpy as np

from mlx_peft.artifacts.explain import DROPPED, SKIPPED

COLOURS = "viridis"
"""Matplotlib's name of the colours of a map: equal steps of a value look equal, also without colour vision."""
SEEN = 0.6
"""How much of a map's colour lies over the grey image."""
FULL = 0.98
"""This share of the patches has less than what is drawn as the most."""
DIM = {SKIPPED: 0.25, DROPPED: 0.0}
"""How much is left of the light of a patch that goes around a block, or is gone."""
SHARP = 448
"""An image has at least so many pixels a side before lines are drawn into it."""
THIN = 112
"""A line is so thin a part of a side that it is seen in a small picture, too."""
LINE = np.array([255, 255, 255], np.uint8)


def heat(pixels: np.ndarray, values: np.ndarray, patch: int) -> np.ndarray:
    """A map over the grey image: from its least value, dark blue, to its largest ones, yellow.

    A few patches that have much more than all others (they are known of large models) do not hide the rest.

    Args:
        pixels: uint8 ``(size, size, 3)``.
        values: ``(grid, grid)``; a map that is the same everywhere has the least everywhere.
        patch: side of a patch; pixels past the last one stay grey.
    """
    from matplotlib import colormaps

    span = np.quantile(values, FULL) - values.min()
    scaled = np.minimum((values - values.min()) / (span if span > 0 else 1), 1)
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    found = np.repeat(grey[..., None], 3, axis=2)
    colour = _wide(colormaps[COLOURS](scaled)[..., :3] * 255, patch)
    inside = found[: len(colour), : len(colour)]
    inside += SEEN * (colour - inside)
    return np.asarray(np.rint(found).astype(np.uint8))


def regions(pixels: np.ndarray, tokens: np.ndarray, patch: int) -> np.ndarray:
    """The image as its tokens are: a patch alone in its token as it is, several in their mean colour with a line around
    them, one that goes around the block dim, one that is gone black.

    Args:
        pixels: uint8 ``(size, size, 3)``.
        tokens: ``(grid, grid)``: the number of each patch's token, or SKIPPED, DROPPED.
        patch: side of a patch.
    """
    side, grid = patch * len(tokens), len(tokens)
    found = np.array(pixels)
    blocks = pixels[:side, :side].reshape(grid, patch, grid, patch, 3).swapaxes(1, 2).astype(np.float64)
    shared = np.zeros(tokens.shape, bool)
    for token in np.unique(tokens):
        there = tokens == token
        if token in DIM:
            blocks[there] *= DIM[int(token)]
        elif there.sum() > 1:
            blocks[there] = blocks[there].mean((0, 1, 2))
            shared |= there
    found[:side, :side] = np.rint(blocks.swapaxes(1, 2).reshape(side, side, 3))
    times = -(-SHARP // len(pixels))
    found = found.repeat(times, axis=0).repeat(times, axis=1)
    found[_borders(tokens, shared, patch * times, len(found))] = LINE
    return np.asarray(found)


def _borders(tokens: np.ndarray, shared: np.ndarray, patch: int, size: int) -> np.ndarray:
    """Where a line is: on the last pixels of a patch whose neighbour has another token, where either shares its own."""
    found, thick = np.zeros((size, size), bool), min(-(-size // THIN), patch)
    for axis in (0, 1):
        one, other = (np.swapaxes(each, 0, axis) for each in (tokens, shared))
        edge = (one[:-1] != one[1:]) & (other[:-1] | other[1:])
        rows = np.swapaxes(found, 0, axis)
        for number, line in enumerate(edge, start=1):
            rows[patch * number - thick : patch * number, : patch * len(line)] |= line.repeat(patch)
    return found


def _wide(values: np.ndarray, patch: int) -> np.ndarray:
    """Every value for all pixels of its patch."""
    return values.repeat(patch, axis=0).repeat(patch, axis=1)
