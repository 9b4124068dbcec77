"""What only answers, of the network of any framework: banks of adapters, and compiled models."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Generic

from mlx_peft.config.schema import Precision
from mlx_peft.core.paths import given_path
from mlx_peft.library.asked import must_be_model
from mlx_peft.library.bank import Bank
from mlx_peft.library.compiled import BUCKETS, Compiled, must_be_precision, sizes_of
from mlx_peft.library.framework import AnyNetwork, Framework


class Inference(Generic[AnyNetwork]):
    """The part of the library that answers."""

    framework: Framework[AnyNetwork]

    def load_adapters(self, model: AnyNetwork, folder: str | Path, budget: int | None = None) -> Bank:
        """A bank of all adapters that have folders in one, for batches in which each image has its own.

        Args:
            model: the base alone; it may not be trained while the bank is used.
            budget: bytes that the adapters in memory may have together; None: any number. The least recently used make
                room.

        Warns:
            UserWarning: one that is damaged, of another base, or cannot be mixed, is left out.

        Raises:
            UserError: the folder is none, or has no adapter in it; the model has a method.
        """
        return Bank.of_folder(model, self.framework.mixer(model), given_path(folder, "the folder of adapters"), budget)

    def compiled(
        self, model: AnyNetwork, precision: Precision | None = None, buckets: Iterable[int] = BUCKETS
    ) -> Compiled:
        """A model that only answers, as it is now: its method merged where that can be, one program for each bucket.

        Any number of threads may ask it; close it, or use it in a ``with``. The model stays as it is and may go on.

        Args:
            precision: of what is computed; None: bfloat16 on a device, float32 on a CPU.
            buckets: numbers of images that are computed at once; others are filled up to the next.

        Raises:
            UserError: there is no such precision, or a bucket is no number of images.
        """
        must_be_model(model)
        must_be_precision(precision)
        return Compiled(self.framework.program(model, precision), model, sizes_of(buckets))
