"""What crosses between the host and a GPU while it computes, so that neither waits for the other."""

from __future__ import annotations

from typing import SupportsFloat

import numpy as np
import torch
from torch import Tensor


class Crossing:
    """Arrays to a device and losses back, in order with its work. Nothing is copied where the host computes.

    To CUDA a batch goes out of pinned memory and on a stream of its own: while a step is computed, the next one's batch
    is already under way, and torch keeps both buffers until they were read.

    Args:
        device: where the arrays go.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def over(self, array: np.ndarray) -> Tensor:
        """An array on the device. What is computed of it from here on waits until it is there; the host does not."""
        here = torch.from_numpy(array)
        if self.stream is None:
            return here.to(self.device)
        with torch.cuda.stream(self.stream):
            there = here.pin_memory().to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.stream)
        there.record_stream(computing)
        return there

    def back(self, value: Tensor) -> SupportsFloat:
        """One number, to be read with ``float``: that waits for it, and for nothing that was asked for after it."""
        return value if self.stream is None else Awaited(value)


class Awaited:
    """A number on its way from CUDA. Reading it where it is computed would wait for all that was asked for since."""

    def __init__(self, value: Tensor) -> None:
        self.number = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        self.number.copy_(value, non_blocking=True)
        self.there = torch.cuda.Event()
        self.there.record()

    def __float__(self) -> float:
        self.there.synchronize()
        return float(self.number)
