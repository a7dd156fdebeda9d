"""Iteration over data of any form, batch by batch."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from resid_theory._check import check_pair

__all__ = ["batches"]


def batches(data: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over the batches of ``data`` as pairs of tensors.

    Args:
        data: An object with ``.x`` and ``.y``, a pair of tensors or arrays (one batch), or an
            iterable of pairs such as a ``DataLoader``.

    Yields:
        ``(x, y)`` with samples along the first axis, dtypes as given.

    Raises:
        ValueError: If a batch is not a pair of equally long, finite arrays, or there is none.
    """
    if hasattr(data, "x") and hasattr(data, "y"):
        yield check_pair((data.x, data.y))
        return
    if isinstance(data, (tuple, list)) and len(data) == 2:
        # A list of two batches looks like a pair of arrays, except for its first entry.
        first = data[0]
        is_batch = isinstance(first, (tuple, list)) and len(first) == 2
        if not is_batch or not all(hasattr(part, "__array__") for part in first):
            yield check_pair(data)
            return
    if not hasattr(data, "__iter__"):
        raise ValueError(
            f"data: got {type(data).__name__}, needs (x, y), an object with .x and .y, "
            "or an iterable of such pairs"
        )
    empty = True
    for item in data:
        yield check_pair(item)
        empty = False
    if empty:
        raise ValueError(
            "data: got no batch, needs at least one; an exhausted iterator is the usual cause"
        )
