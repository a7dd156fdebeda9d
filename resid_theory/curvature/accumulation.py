"""The engine under an operator: graphs kept between products while they fit, else rebuilt."""

import time
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from resid_theory.curvature.empirical_risk import Problem
from resid_theory.curvature.matvec_graphs import MatvecGraph
from resid_theory.data.reiterable import Batch, Passes
from resid_theory.runtime.preserve import deterministic, preserved
from resid_theory.runtime.resources import available_bytes, is_out_of_memory, readable_bytes

__all__ = ["ENGINES", "BatchSum"]

ENGINES = ("auto", "retained", "rebuilt")
_PROBE = 16  # samples that memory and time are measured on
_CHUNK = 1 << 28  # bytes of a chunk's graph; far above, a processor's caches no longer help
_SMALL = 1 << 20  # bytes of a graph below which a product on a CPU is mostly overhead
_SHARE = 8  # of a GPU's free memory products drawn together may hold one part in so many
_MOST = 64  # products drawn together


class BatchSum:
    """Sums over a data set of something drawn from each chunk's graph.

    Args:
        problem: What graphs are made from.
        passes: The data.
        chunk: Samples of a graph, None to choose.
        engine: One of ``ENGINES``.
        limit: Bytes for graphs, None for half of what is free.
        progress: Whether to show a bar on standard error.

    Attributes:
        engine: ``retained`` or ``rebuilt``.
        chunk: Samples of a graph; None for whole batches.
        samples: Number of samples here.
        sample_bytes: Bytes of a graph a sample, measured.
        retained_seconds: Of a product of one vector over all samples on kept graphs, measured.
        rebuilt_seconds: The same with graphs built anew.

    Raises:
        ValueError: If data do not fit, or second derivatives are not symmetric, hence wrong.
        MemoryError: If graphs were to be retained and do not fit, or one sample's does not.
    """

    def __init__(
        self,
        problem: Problem,
        passes: Passes,
        *,
        chunk: int | None,
        engine: str,
        limit: int | None,
        progress: bool,
    ) -> None:
        self._problem, self._passes, self._progress = problem, passes, progress
        self._device = problem.parameters[0].device
        self._graphs: list[tuple[int, MatvecGraph]] = []
        self._fixed = engine != "auto"
        self.chunk = chunk
        with preserved(problem.net, batchnorm=problem.batchnorm):
            # Inside, because a loader draws from the global RNG even when it does not shuffle.
            self.samples = problem.look(passes)
            self._probe(passes.example())
            self._versions = [p._version for p in problem.net.parameters()]
            self.engine = self._fitting(engine, limit)
            self._workspace = available_bytes(self._device) // _SHARE
            if self.engine == "retained":
                self._retain()
            if self.engine == "rebuilt" and not passes.in_memory:
                for _ in passes:  # a second time, to see whether the same samples come again
                    pass

    # -- before the first product --

    def _probe(self, batch: Batch) -> None:
        """Measure memory and time on a few samples, and see whether the matrix is symmetric."""
        count = min(_PROBE, batch.size) if self._problem.splits else batch.size
        while True:
            try:
                self._measure(batch.part(0, count, self._problem.parameters[0]), count)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self._problem.splits or count == 1:
                    raise
                count //= 2
            else:
                break
        if self.chunk is None and self._problem.splits:
            self.chunk = max(1, _CHUNK // max(1, self.sample_bytes))

    def _measure(self, part: object, count: int) -> None:
        start = time.perf_counter()
        graph = self._problem.graph(part, weigh=True)
        built = time.perf_counter()
        check = self._problem.matrix == "hessian"
        _check_symmetric(graph) if check else _draw(graph, 1)
        _wait(self._device)
        product = (time.perf_counter() - built) / (2 if check else 1)
        self.sample_bytes = graph.saved // count
        self.retained_seconds = product * self.samples / count
        self.rebuilt_seconds = (product + built - start) * self.samples / count

    def _fitting(self, engine: str, limit: int | None) -> str:
        """The engine that the graphs' memory allows."""
        limit = available_bytes(self._device) // 2 if limit is None else limit
        # Beside the kept graphs, a product holds about as much as the graph it is drawn from.
        needed = self.sample_bytes * (self.samples + self._chunk_size(self.samples))
        if engine == "retained" and needed > limit:
            raise MemoryError(_too_large(needed, limit))
        return engine if engine != "auto" else "retained" if needed <= limit else "rebuilt"

    def _retain(self) -> None:
        try:
            for batch in self._passes:
                for start in range(0, batch.size, self._chunk_size(batch.size)):
                    count = min(self._chunk_size(batch.size), batch.size - start)
                    self._graphs.append((count, self._graph(batch, start, count)))
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._graphs = []
            if self._fixed:
                raise MemoryError(_too_large(self.sample_bytes * self.samples, None)) from error
        self._give_up_retaining()

    def _give_up_retaining(self) -> None:
        self._graphs, self.engine = [], "rebuilt"
        _empty(self._device)
        warnings.warn("engine: out of memory with retained graphs; rebuilding them", stacklevel=3)

    def _chunk_size(self, batch: int) -> int:
        whole = self.chunk is None or not self._problem.splits
        return batch if whole else min(batch, self.chunk or batch)

    def _graph(self, batch: Batch, start: int, count: int) -> MatvecGraph:
        return self._problem.graph(batch.part(start, count, self._problem.parameters[0]))

    # -- products --

    @property
    def shuffled(self) -> bool:
        """Whether the data came in another order than in the first pass."""
        return self._passes.shuffled

    def step(self, count: int) -> int:
        """How many vectors are differentiated together on a graph.

        Args:
            count: Samples of the graph.

        Returns:
            On a CPU one, unless the graph is so small that overhead decides.
        """
        held = max(1, self.sample_bytes * count)
        if self._device.type == "cpu":
            return _MOST if held <= _SMALL else 1
        return max(1, min(_MOST, self._workspace // held))

    def add_up(self, work: Callable[[MatvecGraph, int], Tensor], total: Tensor) -> Tensor:
        """The sum over samples of what is drawn from each chunk's graph, a mean over the chunk.

        Args:
            work: Draws it, from a graph and its number of samples.
            total: Zeros, which the sum is added to.

        Returns:
            ``total``.

        Raises:
            ValueError: If parameters changed since the first graph, or the data differ.
            MemoryError: If a graph does not fit.
        """
        if self._versions != [p._version for p in self._problem.net.parameters()]:
            raise ValueError(
                "net: its parameters changed after the operator was made, whose loss and gradient "
                "belong to the old ones; make a new operator"
            )
        with deterministic(), tqdm(
            total=self.samples, disable=not self._progress, desc="Product", unit="sample",
            leave=False,
        ) as bar:  # fmt: skip
            if self.engine == "retained" and self._from_kept(work, total, bar):
                return total
            with preserved(self._problem.net, batchnorm=self._problem.batchnorm):
                for batch in self._passes:
                    for count, result in self._over(batch, work):
                        total.add_(result, alpha=count)
                        bar.update(count)
        return total

    def _from_kept(
        self, work: Callable[[MatvecGraph, int], Tensor], total: Tensor, bar: "tqdm[None]"
    ) -> bool:
        try:
            for count, graph in self._graphs:
                total.add_(work(graph, count), alpha=count)
                bar.update(count)
            return True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or self._fixed:
                raise
        total.zero_()
        self._give_up_retaining()
        return False

    def _over(
        self, batch: Batch, work: Callable[[MatvecGraph, int], Tensor]
    ) -> Iterator[tuple[int, Tensor]]:
        start = 0
        while start < batch.size:
            count = min(self._chunk_size(batch.size), batch.size - start)
            try:
                result = work(self._graph(batch, start, count), count)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if not self._problem.splits or count == 1:
                    raise MemoryError(self._not_even(count)) from error
            else:
                yield count, result
                start += count
                continue
            # Out here the traceback, which holds the graph, is gone.
            self.chunk = count // 2
            _empty(self._device)
            warnings.warn(
                f"chunk: out of memory with {count} samples; going on with {self.chunk}",
                stacklevel=5,
            )

    def _not_even(self, count: int) -> str:
        if self._problem.splits:
            return "chunk: out of memory with a single sample; needs a smaller net or float32"
        return (
            f"chunk: out of memory with a batch of {count} samples, which cannot be split "
            "(batchnorm='batch' or a loss of (net, batch)); needs smaller batches"
        )


def _too_large(needed: int, limit: int | None) -> str:
    there = "" if limit is None else f", {readable_bytes(limit)} may be used"
    return (
        f"engine: 'retained' needs about {readable_bytes(needed)}{there}; use 'auto' or 'rebuilt', "
        "which hold one chunk at a time"
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _empty(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _draw(graph: MatvecGraph, count: int) -> tuple[Tensor, Tensor]:
    """Some fixed random vectors and their products."""
    first, size = graph.parameters[0], sum(p.numel() for p in graph.parameters)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(count, size, generator=generator, dtype=torch.float64).to(first.device)
    every = range(len(graph.parameters))
    return vectors, graph.product(vectors, rows=every, columns=every, step=1).double()


def _check_symmetric(graph: MatvecGraph) -> None:
    vectors, products = _draw(graph, 2)
    gap = abs(float(vectors[0] @ products[1] - vectors[1] @ products[0]))
    norms = vectors.norm(dim=1) * products.norm(dim=1).flip(0)
    # Either side is of the order of the matrix's Frobenius norm, as this scale is. Round-off stays
    # far below the fourth root of the precision, a wrong derivative far above.
    scale = float(norms.sum()) / vectors.shape[1] ** 0.5
    eps = torch.finfo(graph.parameters[0].dtype).eps
    if gap > eps**0.25 * scale:
        raise ValueError(
            f"net: its second derivatives are not symmetric (by {gap:.2g} on vectors of length "
            f"{float(vectors[0].norm()):.2g}), so they are those of no function; the usual causes "
            "are a gradient written by hand and an operation that torch differentiates only once "
            "right (torch.nn.utils weight_norm is one)"
        )
