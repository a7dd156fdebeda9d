"""Trace, largest eigenvalue and norms of a curvature matrix's blocks, by parameter."""

from dataclasses import dataclass

import torch
from torch import Tensor

from resid_theory._check import as_generator, check_int
from resid_theory.eigen.estimate import Estimate, mean_estimate, positive_mean, root
from resid_theory.eigen.lanczos import eigenpairs
from resid_theory.eigen.linear_operator import LinearOperator
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.runtime.result import Columns, Result


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerTable(Result):
    """A curvature matrix by parameter.

    Attributes:
        names: Parameters, in the order of rows and columns.
        traces: Of each diagonal block.
        largest: Largest eigenvalue of each diagonal block.
        norms: Frobenius norm of each diagonal block.
        couplings: Frobenius norm of each parameter's blocks off the diagonal, all together.
        block_norms: Frobenius norms of all blocks, (parameters, parameters), without error bars.
        products: Products with one vector.
    """

    names: tuple[str, ...]
    traces: tuple[Estimate, ...]
    largest: tuple[Estimate, ...]
    norms: tuple[Estimate, ...]
    couplings: tuple[Estimate, ...]
    block_norms: Tensor
    products: int

    headline = "curvature by parameter, {0.products} products"

    def table(self) -> Columns:
        """A row for each parameter, numbers with the ends of their 95 % intervals."""
        columns: dict[str, list[object]] = {"parameter": list(self.names)}
        for name, found in (
            ("trace", self.traces), ("largest", self.largest), ("norm", self.norms),
            ("coupling", self.couplings),
        ):  # fmt: skip
            columns[name] = [estimate.value for estimate in found]
            columns[f"{name}_low"] = [estimate.low for estimate in found]
            columns[f"{name}_high"] = [estimate.high for estimate in found]
        return columns


def layer_table(
    A: LinearOperator,
    *,
    probes: int = 16,
    tolerance: float = 1e-3,
    generator: torch.Generator | int = 0,
) -> LayerTable:
    r"""Measure the blocks of a curvature matrix, by parameter.

    Probes z of random signs on one parameter's columns show all of its blocks at once:
    :math:`z^T A_{kk} z` has the trace for its mean, :math:`\|A_{rk} z\|^2` the squared norm.
    Parameters with at most twice as many entries as there are probes get all columns, hence exact
    numbers, the largest eigenvalue without further products.

    Args:
        A: The curvature of a net, or a sum with one.
        probes: Products for each parameter, at least 4.
        tolerance: Of the largest eigenvalues, as of `eigenpairs`.
        generator: For signs and starts: a generator, or the seed of a new one.

    Returns:
        The table.

    Raises:
        ValueError: If A does not know its parameters, or an argument is out of range.

    Source:
        Hutchinson 1989, "A stochastic estimator of the trace of the influence matrix".
    """
    check = check_int("probes", probes, 4)
    shapes = A.column_shapes if isinstance(A, LinearOperator) else None
    if shapes is None or A.row_shapes != shapes:
        raise ValueError("A: its rows and columns are no parameters, needs the curvature of a net")
    source, names = as_generator(generator), tuple(shapes)
    sizes = [shape.numel() for shape in shapes.values()]
    traces, largest, rows = [], [], []
    norms: list[Estimate] = []
    couplings: list[Estimate] = []
    products = 0
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        exact = size <= 2 * check
        if exact:
            vectors = torch.eye(size)
        else:
            signs = torch.randint(2, (size, check), generator=source, device=source.device)
            vectors = 2.0 * signs - 1.0
        vectors = vectors.to(A.device)
        parts = (A.block(list(names), name) @ vectors).double().split(sizes)
        forms = (vectors * parts[number]).sum(0)
        squares = torch.stack([part.square().sum(0) for part in parts])  # (parameters, probes)
        others = squares.sum(0) - squares[number]
        for found, samples in ((norms, squares[number]), (couplings, others)):
            found.append(_norm(samples.cpu(), exact))
        if exact:
            traces.append(Estimate.exact(float(forms.sum())))
        else:
            traces.append(mean_estimate(forms.cpu()))
        rows.append(squares.sum(1) if exact else squares.mean(1))
        products += vectors.shape[1]
        if exact:
            error = 0.0 if A.error is None else A.error.spectral
            whole = (parts[number] + parts[number].mT) / 2
            every = Spectrum.of(torch.linalg.eigvalsh(whole), error=error)
            largest.append(Estimate.exact(every.largest, every.zero_threshold))
        else:
            pairs = eigenpairs(A.block(name), 1, tolerance=tolerance, generator=source)
            largest.append(pairs.largest)
            products += pairs.products
    if A.error is not None:
        traces = [found.widened(A.error.trace) for found in traces]
        norms = [found.widened(A.error.frobenius) for found in norms]
        couplings = [found.widened(A.error.frobenius) for found in couplings]
    squared = torch.stack(rows)
    return LayerTable(
        names=names,
        traces=tuple(traces),
        largest=tuple(largest),
        norms=tuple(norms),
        couplings=tuple(couplings),
        block_norms=((squared + squared.mT) / 2).sqrt().cpu(),
        products=products,
    )


def _norm(samples: Tensor, exact: bool) -> Estimate:
    if exact:
        return Estimate.exact(float(samples.sum()) ** 0.5)
    return root(positive_mean(samples))
