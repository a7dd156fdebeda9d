"""Sums over the processes of torch.distributed, each of which holds a part of the data."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class ProcessGroup:
    """The processes that share a data set; without a group, this one alone."""

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self.count, self.rank = 1, 0
        if group is None:
            return
        if not dist.is_available() or not dist.is_initialized():
            raise ValueError(
                f"process_group: got {group!r}, but torch.distributed is not initialized; call "
                "torch.distributed.init_process_group in every process first"
            )
        if isinstance(group, str):
            if group != "world":
                raise ValueError(
                    f"process_group: got {group!r}, needs None, 'world' or a process group"
                )
            self._group = dist.group.WORLD
        self.count = dist.get_world_size(self._group)
        self.rank = dist.get_rank(self._group)

    def add(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place; every process must call this."""
        if self._group is not None:
            dist.all_reduce(tensor, group=self._group)
        return tensor

    def add_product(self, total: Tensor, vectors: Tensor) -> Tensor:
        """Sum products of shape (rows, b) and check that all have the same ``vectors``."""
        if self._group is None:
            return total
        vectors = vectors.double()
        # A sketch of the vectors goes through the same reduction as the products.
        places = torch.arange(len(vectors), device=vectors.device, dtype=torch.float64)
        sketch = torch.cos(places) @ vectors.sum(1)
        extra = torch.stack([sketch, sketch.square(), vectors.square().sum()])
        everything = self.add(torch.cat([total.reshape(-1), extra]))
        one, squares, norms = everything[-3:].tolist()
        # The spread of equal numbers is round-off; that of unrelated vectors is of order |V|^2.
        if not self.count * squares - one**2 <= 1e-8 * self.count * norms:
            raise ValueError(
                "V: the vectors differ between ranks, needs the same ones everywhere: draw them "
                "with generators of one seed"
            )
        return everything[:-3].view(total.shape)

    def together(self, failure: BaseException | None, device: torch.device) -> None:
        """Raise ``failure``, or a RuntimeError if another process failed, so that none waits."""
        failed = torch.tensor([int(failure is not None)], device=device)
        count = int(self.add(failed).item())
        if failure is not None:
            raise failure
        if count:
            raise RuntimeError(
                f"process_group: {count} other ranks failed, each with its own error"
            )

    def from_first(self, call: Callable[[], Any], device: torch.device) -> Any:
        """Result of a call that rank 0 alone makes, or its error, in all processes."""
        if self._group is None:
            return call()
        answer: list[Any] = [None, None]
        failure: Exception | None = None
        if self.rank == 0:
            try:
                answer[0] = call()
            except Exception as error:
                failure, answer[1] = error, f"{type(error).__name__}: {error}"
        source = dist.get_global_rank(self._group, 0)
        dist.broadcast_object_list(answer, source, group=self._group, device=device)
        if failure is not None:
            raise failure
        if answer[1] is not None:
            raise RuntimeError(f"process_group: rank 0 failed with {answer[1]}")
        return answer[0]

    def check_equal(self, content: Mapping[str, Any], device: torch.device) -> None:
        """Refuse to go on with values that differ between processes; names the first."""
        first = self.from_first(lambda: dict(content), device)
        other = next((name for name, value in content.items() if value != first[name]), None)
        failure = None
        if other is not None:
            failure = ValueError(
                f"process_group: {other} is {content[other]!r} on rank {self.rank} and "
                f"{first[other]!r} on rank 0, needs the same everywhere"
            )
        self.together(failure, device)

    def check_same(self, tensors: list[Tensor], settings: str) -> None:
        """Refuse weights or settings that differ between processes, by their checksums."""
        if self._group is None:
            return
        contents = [*map(_content, tensors), settings.encode()]
        # Equal numbers have no spread at all, not even where their squares pass 2^63.
        own = torch.tensor(list(map(zlib.crc32, contents)), device=tensors[0].device)
        sums = self.add(torch.stack([own, own.square()]))
        apart = (self.count * sums[1] != sums[0].square()).tolist()
        if any(apart):
            place = apart.index(True)
            what = f"parameter {place}" if place < len(tensors) else "the arguments"
            raise ValueError(
                f"net: {what} differs between ranks, needs the same net and arguments everywhere: "
                "load one checkpoint, or broadcast the parameters from rank 0"
            )


def _content(tensor: Tensor) -> bytes:
    return bytes(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
