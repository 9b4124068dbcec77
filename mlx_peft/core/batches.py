"""Any number of things, so many at a time."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from mlx_peft.core.errors import UserError, shown


def slices(count: int, size: Any) -> Iterator[slice]:
    """Of ``count`` things the first ``size``, and so on. Raises UserError where ``size`` is no number of them."""
    if not is_number_of_images(size):
        raise UserError(f"batch_size should be a number of images, such as 64, not {shown(size)}")
    return (slice(first, first + size) for first in range(0, count, size))


def is_number_of_images(size: Any) -> bool:
    """Whether it is a whole number, of Python's or NumPy's, and at least one."""
    try:
        return not isinstance(size, bool) and operator.index(size) > 0
    except TypeError:
        return False
