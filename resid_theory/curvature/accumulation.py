"""Sums over a data set of matrix-vector products, from graphs that are retained or rebuilt."""

import warnings
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from resid_theory.curvature.empirical_risk import EmpiricalRisk
from resid_theory.curvature.fisher_graphs import EmpiricalFisherOfOneGraph
from resid_theory.curvature.forward_checks import NoSecondDerivative, check_twice
from resid_theory.curvature.matvec_graphs import MatvecGraph
from resid_theory.curvature.rounding import (
    NOT_SYMMETRIC,
    ZERO,
    asymmetry,
    measured_error,
    symmetric_in_float64,
)
from resid_theory.data import Batch
from resid_theory.eigen.matrix_error import MatrixError
from resid_theory.eigen.products import probe_vectors
from resid_theory.losses import NoWeighting
from resid_theory.runtime.net_entry import without_hooks
from resid_theory.runtime.preserve import deterministic
from resid_theory.runtime.resources import available_bytes, is_out_of_memory, readable_bytes

ENGINES = ("auto", "retained", "rebuilt")
_PROBE = 4  # samples that memory is measured on, and symmetry
_AGAIN = 32  # samples of which derivatives are refused that are not symmetric on fewer
_CHUNK = 1 << 28  # bytes of a chunk's graph; far above, a processor's caches no longer help
_SMALL = 1 << 20  # bytes of a graph below which a product on a CPU is mostly overhead
_SHARE = 8  # vectors differentiated together may take this fraction of a GPU's free memory
_MOST = 64  # vectors differentiated together


class BatchSum:
    """Weighted sums over all samples of a function of each chunk's graph.

    Attributes:
        engine: ``retained`` or ``rebuilt``.
        chunk: Samples of a graph; None for whole batches.
        limit: Bytes for graphs that the caller allowed, None for half of what is free.
        samples: Number of samples in this process.
        weight: Sum of the weights of all samples, by which sums are divided; 1 for a loss that is
            a sum.
        total: Loss and gradient, (1 + P,), float64, times the weight.
        sample_bytes: Bytes of a graph for each sample, measured.
    """

    def __init__(
        self, risk: EmpiricalRisk, *, chunk: int | None, engine: str, limit: int | None,
        progress: bool,
    ) -> None:  # fmt: skip
        self.risk, self.chunk, self.limit, self._progress = risk, chunk, limit, progress
        self.engine, self._fixed = engine, engine != "auto"
        self._zero: MatrixError | None = None
        size = sum(parameter.numel() for parameter in risk.parameters)
        with risk.measuring():
            self.total = torch.zeros(1 + size, dtype=torch.float64, device=risk.device)
            # Inside, because a loader draws from the global RNG even when it does not shuffle.
            try:
                self._first_pass()
            except NoWeighting as error:
                # Some of the samples looked like a mean, others do not.
                if chunk is not None:
                    raise
                risk.keep_whole(str(error))
                self.chunk = None
                self.total.zero_()
                self._first_pass()
        if risk.sums:
            self.weight = 1.0

    def _first_pass(self) -> None:
        """Add up loss and gradient, and keep the graphs while they fit."""
        risk = self.risk
        self._graphs: list[tuple[int, MatvecGraph]] = []
        self.samples, self.weight = 0, 0.0
        batches = risk.first_pass()
        first = next(batches)
        self._check_chunk(first.size)
        self._probe(first)
        self._free = available_bytes(risk.device) // 2
        self._workspace = 2 * self._free // _SHARE
        keeping = self.engine != "rebuilt"
        with tqdm(disable=not self._progress, desc="Gradient", unit="sample", leave=False) as bar:
            for batch in chain([first], batches):
                if not self.weight:
                    self._weighed = batch  # the first one that counts
                self.samples += batch.size
                self._check_chunk(batch.size)
                splits = self._chunk_size(batch.size) < batch.size
                if splits and self.sample_bytes * batch.size <= self._free:  # without a graph, less
                    risk.check_alone(batch)
                keeping = keeping and self._fits(self.samples)
                start = self._retain(batch, bar) if keeping else 0
                keeping = start == batch.size
                if not keeping:
                    self._graphs = []
                    self._add_rebuilt(batch, start, self.total, bar)
        risk.check_read_only()
        risk.check_reached(first)
        self.engine = "retained" if keeping else "rebuilt"

    def _check_chunk(self, samples: int) -> None:
        """Refuse chunks smaller than a batch that cannot be split."""
        if self.chunk is not None and samples > self.chunk and not self.risk.splits:
            why = self.risk.found.whole or "batchnorm='batch', or a loss of (net, batch)"
            raise ValueError(
                f"chunk: got {self.chunk}, but a batch of {samples} samples cannot be split "
                f"({why}); leave it out, or make the data's own batches smaller"
            )

    def _fits(self, samples: int) -> bool:
        """True if graphs of so many samples may be kept."""
        allowed = self._free if self.limit is None else self.limit
        needed = self.graph_bytes(samples)
        if needed > allowed and self._fixed:
            raise MemoryError(_too_large(needed, allowed))
        return needed <= allowed

    def graph_bytes(self, samples: int) -> int:
        """Bytes of kept graphs and of a product, which holds about as much as one of them."""
        chunk = self._chunk_size(samples)
        return self.sample_bytes * (samples + chunk) + self._shared_bytes * (samples // chunk + 2)

    def error(self) -> MatrixError | None:
        """Measure the difference from the matrix in float64; None for a net in float64."""
        self.check_unchanged()
        if self._zero:
            return self._zero
        risk = self.risk
        few = (_SMALL - self._held_bytes(0)) // self.sample_bytes
        with risk.measuring():
            return measured_error(risk, self._weighed, self.samples, few)

    # -- before the first product --

    def _probe(self, batch: Batch) -> None:
        """Measure memory on a few samples, and check that the Hessian is symmetric."""
        splits = self.risk.splits
        count = min(_PROBE, batch.size) if splits else batch.size
        while True:
            try:
                self._measure(batch, count)
            except NoSecondDerivative:
                if self.risk.matrix != "empirical_fisher":
                    raise
                self.risk.take_graphs(EmpiricalFisherOfOneGraph, alone=True)
                self.chunk = count = 1
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not splits or count == 1:
                    raise
                count //= 2
            else:
                break
        if self.chunk is None and splits:
            size, device = _CHUNK, self.risk.device
            if device.type == "cuda":  # which a graph that does not fill it keeps waiting
                size = max(size, available_bytes(device) // _SHARE)
            self.chunk = max(1, size // self.sample_bytes)

    def _measure(self, batch: Batch, count: int) -> None:
        graph = self.risk.graph(batch, 0, count, weigh=True)
        self.risk.check_read_only()
        tries = 3 if self.risk.matrix == "hessian" else 1  # the others are symmetric as written
        size = sum(p.numel() for p in graph.parameters)
        vectors = probe_vectors(tries, size).to(self.risk.device)
        with check_twice(graph.given, graph.first_derivatives):
            products = graph.product(vectors)
        gap = asymmetry(graph, vectors, products)
        more, zero = min(_AGAIN, batch.size), not products.any()
        if (gap or zero) and self.risk.splits and count < more:
            # Of a few samples that are classified with certainty, all derivatives are rounding.
            self._measure(batch, more)
            return
        if zero and self.risk.matrix == "gauss_newton":
            self.risk.note(
                "the Gauss-Newton matrix is zero, because the loss is linear in the outputs; of "
                "log-probabilities take the logits as outputs, and the loss 'cross_entropy'"
            )
        kind, why = graph.parameters[0].dtype, NOT_SYMMETRIC
        least = 4 * torch.finfo(kind).eps * abs(float(graph.value))
        if gap and float((vectors @ products.mT).abs().max()) <= least:
            self.risk.note(ZERO)
            self._zero = MatrixError(
                spectral=least, frobenius=least * size**0.5, trace=least * size
            )
        elif gap:
            if symmetric_in_float64(self.risk, batch, count, vectors):
                why = f"but in float64 they are: {kind} is too coarse here, pass net.double()"
            raise ValueError(
                f"net: its second derivatives are not symmetric (by {gap:.2g} on vectors of "
                f"length {float(vectors[0].norm()):.2g}), {why}"
            )
        # Fewer samples show what a graph holds whatever their number: weights made of others.
        less = count // 2 if self.risk.splits and count >= 4 else 0
        fewer = self.risk.graph(batch, 0, less, weigh=True).saved if less else 0
        self.sample_bytes = max(1, (graph.saved - fewer) // (count - less))
        self._weight_bytes = sum(p.nbytes for p in graph.parameters)
        self._shared_bytes = max(0, graph.saved - self.sample_bytes * count)

    def _retain(self, batch: Batch, bar: "tqdm[None]") -> int:
        """Keep a batch's graphs and add up their gradients; return how many samples fitted."""
        start = 0
        try:
            while start < batch.size:
                count = min(self._chunk_size(batch.size), batch.size - start)
                graph = self.risk.graph(batch, start, count, ends=True)
                if graph.weight:  # without one it may not be a number: ignored labels
                    self._graphs.append((count, graph))
                    graph.add_value_and_gradient(self.total, graph.weight)
                self.weight += graph.weight
                start += count
                bar.update(count)
            return start
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self._fixed:
                raise MemoryError(_too_large(self.sample_bytes * self.samples, None)) from error
        self._stop_retaining()
        return start

    def _stop_retaining(self) -> None:
        self._graphs, self.engine = [], "rebuilt"
        self._free_cache()
        warnings.warn("engine: out of memory with retained graphs; rebuilding them", stacklevel=3)

    def _free_cache(self) -> None:
        if self.risk.device.type == "cuda":
            torch.cuda.empty_cache()

    def _chunk_size(self, batch: int) -> int:
        if self.chunk is None or not self.risk.splits:
            return batch
        return min(batch, self.chunk)

    # -- sums --

    def _together(self, count: int) -> int:
        """Number of vectors differentiated together on a graph of ``count`` samples."""
        held = self._held_bytes(count)
        if self.risk.device.type == "cpu":
            return _MOST if held <= _SMALL else 1
        return max(1, min(_MOST, self._workspace // held))

    def _held_bytes(self, count: int) -> int:
        """Bytes that a product reads on a graph of ``count`` samples."""
        return self._weight_bytes + self._shared_bytes + self.sample_bytes * count

    def check_unchanged(self) -> None:
        """Refuse a net that is not what it was when the operator was made."""
        if change := self.risk.state.change():
            raise ValueError(
                f"net: changed after the operator was made, whose loss and gradient belong to the "
                f"old one ({change}); make a new operator"
            )

    def add_products(self, total: Tensor, **block: Any) -> None:
        """Add a product to zeros (b, size of the rows); the block as of `MatvecGraph.product`."""
        self.check_unchanged()
        hooks = (p._backward_hooks for p in self.risk.parameters)  # those of modules are not kept
        with deterministic(), without_hooks(hooks), tqdm(
            total=self.samples, disable=not self._progress, desc="Product", unit="sample",
            leave=False,
        ) as bar:  # fmt: skip
            try:
                for count, graph in self._graphs:
                    graph.add_product(total, graph.weight, self._together(count), **block)
                    bar.update(count)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self._fixed:
                    raise
                failed = True
            else:
                failed = False
            if failed:  # out here the traceback, which holds the graphs, is gone
                del graph
                total.zero_()
                self._stop_retaining()
            if self.engine == "rebuilt":
                with self.risk.measuring(weights=False):
                    for batch in self.risk.data:
                        self._add_rebuilt(batch, 0, total, bar, block)

    def _add_rebuilt(
        self,
        batch: Batch,
        start: int,
        total: Tensor,
        bar: "tqdm[None]",
        block: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a batch's product, or loss and gradient; halve chunks where memory is short."""
        while start < batch.size:
            count = min(self._chunk_size(batch.size), batch.size - start)
            try:
                result, weight = self._of_chunk(batch, start, count, total, block)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if not self.risk.splits:
                    raise MemoryError(
                        f"chunk: out of memory with a batch of {count} samples, which cannot be "
                        "split (batchnorm='batch' or a loss of (net, batch)); needs smaller batches"
                    ) from error
                if count == 1:
                    raise MemoryError(
                        "chunk: out of memory with a single sample; needs a smaller net or float32"
                    ) from error
            else:
                if weight:
                    total.add_(result, alpha=weight)
                if block is None:
                    self.weight += weight
                bar.update(count)
                start += count
                continue
            # Out here the traceback, which holds the graph, is gone.
            self.chunk = count // 2
            self._free_cache()
            warnings.warn(
                f"chunk: out of memory with {count} samples; going on with {self.chunk}",
                stacklevel=4,
            )

    def _of_chunk(
        self, batch: Batch, start: int, count: int, like: Tensor, block: Mapping[str, Any] | None
    ) -> tuple[Tensor, float]:
        """The part of a chunk, whose graph is gone afterwards, and its weight."""
        graph = self.risk.graph(batch, start, count, ends=True)
        part = torch.zeros_like(like)
        if block is None:
            graph.add_value_and_gradient(part, 1.0)
        else:
            graph.add_product(part, 1.0, self._together(count), **block)
        return part, graph.weight


def _too_large(needed: int, limit: int | None) -> str:
    there = "" if limit is None else f", {readable_bytes(limit)} may be used"
    return (
        f"engine: 'retained' needs about {readable_bytes(needed)}{there}; use 'auto' or 'rebuilt', "
        "which hold one chunk at a time"
    )
