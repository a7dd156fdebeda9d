"""Report of a spectrum, dense or matrix-free: every number with its error bar."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from resid_theory._check import as_generator, check_int, check_within
from resid_theory.eigen.certificate import Certificate
from resid_theory.eigen.density import Density
from resid_theory.eigen.eigenpair_result import Eigenpairs
from resid_theory.eigen.estimate import Estimate
from resid_theory.eigen.lanczos import BLOCK, search
from resid_theory.eigen.matrix_error import MatrixError
from resid_theory.eigen.operator_log import Operator, RecordedOperator
from resid_theory.eigen.orthogonalization import dots
from resid_theory.eigen.quadrature import lanczos_quadrature
from resid_theory.eigen.ritz_bounds import Goal
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.runtime.result import Columns, Result


@dataclass(frozen=True, kw_only=True, eq=False)
class SpectrumReport(Result):
    """Summary of the spectrum of a symmetric operator, every number with its error bar.

    Attributes:
        method: ``dense`` (every eigenvalue, exact) or ``matrix-free`` (from products).
        reason: Reason for this method, in a few words.
        matrix: Name of the operator, e.g. ``hessian``.
        parameters: Number of eigenvalues P.
        samples: Number of samples of the data set that defines the operator, if there is one.
        largest: Largest eigenvalues, descending, each with its bound; in units of the eigenvalues.
        smallest: Smallest eigenvalues, most negative first, each with its bound.
        trace: Sum of the eigenvalues.
        frobenius_norm: Square root of the sum of their squares.
        index: Share of eigenvalues below ``-index_threshold``, in [0, 1]; None without a density.
        index_threshold: |λ| up to this counts as zero in the index; in units of the eigenvalues.
        condition_number: max|λ| over a percentile of |λ|; dimensionless, inf where the percentile
            cannot be distinguished from zero. None without a density.
        percentile: That percentile, in [0, 100].
        spectrum: All eigenvalues, where they are known.
        density: Their distribution, where it was estimated.
        pairs: Extreme eigenpairs with vectors, where they were computed.
        products: Number of products of the operator with one vector.
        notes: Warnings about the numbers.
    """

    method: str
    reason: str
    matrix: str
    parameters: int
    samples: int | None
    largest: tuple[Estimate, ...]
    smallest: tuple[Estimate, ...]
    trace: Estimate
    frobenius_norm: Estimate
    index: Estimate | None
    index_threshold: float
    condition_number: Estimate | None
    percentile: float
    spectrum: Spectrum | None
    density: Density | None
    pairs: Eigenpairs | None
    products: int
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        spectrum: Spectrum,
        k: int = 5,
        *,
        percentile: float = 10.0,
        matrix: str = "hessian",
        samples: int | None = None,
        reason: str = "all eigenvalues are known",
        pairs: Eigenpairs | None = None,
        error: MatrixError | None = None,
    ) -> "SpectrumReport":
        """The report of a spectrum that is known exactly.

        Args:
            spectrum: All eigenvalues.
            k: Number of eigenvalues to list at each end.
            percentile: Percentile of |λ| for the condition number, in [0, 100].
            matrix: Name of the operator.
            samples: Number of samples of the data set, if there is one.
            reason: Reason for this method, in a few words.
            pairs: Extreme eigenpairs, where their vectors are known.
            error: The part of ``spectrum.zero_threshold`` that is the matrix's own error, whose
                trace and norm are known better than from that.

        Returns:
            A report whose bounds are ``spectrum.zero_threshold``, by default that of a dense
            eigensolver.

        Example:
            >>> report = SpectrumReport.of(rt.Spectrum.of([-2.0, 1.0, 4.0]), k=1)
            >>> report.largest[0].value, report.trace.value, round(report.index.value, 3)
            (4.0, 3.0, 0.333)
        """
        error, bound, k = error or MatrixError(), spectrum.zero_threshold, check_int("k", k)
        spread = spectrum.size**0.5 * (bound - error.spectral)
        threshold = max(1e-10 * spectrum.max_magnitude, bound)
        below, above = (
            spectrum.count_below(place) / spectrum.size
            for place in (-threshold - bound, -threshold + bound)
        )
        index = Estimate.exact(spectrum.count_below(-threshold) / spectrum.size)
        top, rank = spectrum.max_magnitude, spectrum.magnitude_percentile(percentile)
        condition = Estimate.exact(spectrum.percentile_condition_number(percentile))
        if top > 0:
            high = (top + bound) / (rank - bound) if rank > bound else math.inf
            condition = replace(condition, low=(top - bound) / (rank + bound), high=high)
        return cls(
            method="dense",
            reason=reason,
            matrix=matrix,
            parameters=spectrum.size,
            samples=samples,
            largest=_ends(spectrum, k, 1, bound),
            smallest=_ends(spectrum, k, -1, bound),
            trace=Estimate.exact(spectrum.trace, spread).widened(error.trace),
            frobenius_norm=Estimate.exact(spectrum.frobenius_norm, spread).widened(error.frobenius),
            index=replace(index, low=below, high=above),
            index_threshold=threshold,
            condition_number=condition,
            percentile=percentile,
            spectrum=spectrum,
            density=None,
            pairs=pairs,
            products=0 if pairs is None else pairs.products,
        )

    @property
    def numbers(self) -> dict[str, Estimate]:
        """The numbers by name, extremes first, without those that were not estimated."""
        named = {f"largest {i}": end for i, end in enumerate(self.largest, 1)}
        named |= {f"smallest {i}": end for i, end in enumerate(self.smallest, 1)}
        named |= {"trace": self.trace, "Frobenius norm": self.frobenius_norm}
        if self.index is not None:
            named[f"index, share below {-self.index_threshold:.2g}"] = self.index
        if self.condition_number is not None:
            named[f"condition number, percentile {self.percentile:g}"] = self.condition_number
        return named

    @property
    def title(self) -> str:
        """Matrix, size, method and its reason."""
        data = "" if self.samples is None else f", {self.samples} samples"
        cost = f", {self.products} products" if self.products else ""
        return f"{self.matrix}, P = {self.parameters}{data}: {self.method}{cost} ({self.reason})"

    def table(self) -> Columns:
        """One row for each number, with its standard error and the ends of its 95 % interval."""
        parts = [asdict(number) for number in self.numbers.values()]
        about = {"method": self.method, "matrix": self.matrix, "parameters": self.parameters}
        return {
            "quantity": list(self.numbers),
            **{name: [part[name] for part in parts] for name in parts[0]},
            **{name: [value] * len(parts) for name, value in about.items()},
        }

    def shown(self) -> Columns:
        """The numbers with their intervals."""
        return {"quantity": list(self.numbers), "value": list(map(str, self.numbers.values()))}


def _ends(spectrum: Spectrum, k: int, sign: int, bound: float) -> tuple[Estimate, ...]:
    """The k outermost eigenvalues at one end."""
    levels, counts = spectrum.levels, spectrum.multiplicities
    if sign > 0:
        levels, counts = levels.flip(0), counts.flip(0)
    needed = levels[:k].repeat_interleave(counts[:k].clamp_max(k))[:k]
    return tuple(Estimate.exact(value, bound) for value in needed.tolist())


def goal_of_report(
    k: int, percentile: float, tolerance: float, missed: float, probes: int, steps: int
) -> Goal:
    """The pairs that a report wants; ValueError for an option that is out of range."""
    check_int("probes", probes)
    check_int("steps", steps)
    check_within("percentile", percentile, 0, 100)
    return Goal(which="both", k=k, tolerance=tolerance, missed=missed)


def spectral_estimates(
    A: Operator,
    k: int = 5,
    *,
    density: bool = True,
    percentile: float = 10.0,
    tolerance: float = 1e-3,
    missed: float = 1e-3,
    probes: int = 10,
    steps: int = 100,
    generator: torch.Generator | int = 0,
    matrix: str = "operator",
    samples: int | None = None,
    reason: str = "asked for",
    folder: str | Path | None = None,
    progress: bool = False,
) -> SpectrumReport:
    """Extremes, trace, norm, density, index and condition number of an operator, from shared runs.

    The extreme eigenpairs come first. Their span U is then treated exactly: its part of the trace
    and of the Frobenius norm needs no further product, and the probes of the density stay in its
    complement. All their products together give the density, in which eigenvalues that every probe
    has resolved are counted exactly too, and from it trace, norm, index and condition number; where
    no more than k eigenvalues are negative, the extremes give the index. Each probe also searches
    for an eigenvalue beyond the extremes.

    Args:
        A: (P, P), symmetric: a tensor, or anything with ``@``, a shape, a dtype and a device.
        k: Number of pairs at each end.
        density: Whether to run each probe for ``steps`` products; else for one.
        percentile: Percentile of |λ| for the condition number, in [0, 100].
        tolerance: Error bound of each extreme eigenvalue relative to its magnitude, or to a
            hundredth of the largest magnitude where that is more.
        missed: Probability of a missed extreme eigenvalue at which their search ends.
        probes: Number of independent random vectors; at least two for an error bar.
        steps: Number of Lanczos steps per probe.
        generator: For all random vectors: a generator, or the seed of a new one.
        matrix: Name of the operator, for the report.
        samples: Number of samples of the data set, for the report.
        reason: Reason for this method, for the report.
        folder: Where to record the products, so that a killed call, made again, continues.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The report; ``method`` is ``matrix-free``.

    Raises:
        ValueError: If A is not a symmetric operator or an argument is out of range.

    Example:
        >>> A = torch.diag(torch.cat([torch.linspace(-1, 1, 200), torch.tensor([9.0, 7.0])]))
        >>> report = rt.eigen.spectral_estimates(A, k=2, steps=30)
        >>> report.trace.covers(16.0), [round(end.value, 2) for end in report.largest]
        (True, [9.0, 7.0])
    """
    generator = as_generator(generator)
    goal = goal_of_report(k, percentile, tolerance, missed, probes, steps)
    steps = steps if density else 1
    with RecordedOperator(A, folder=folder, progress=progress, label="spectrum") as operator:
        pairs, locked = search(operator, goal, block=BLOCK, generator=generator)
        values, unit, error = locked.values, operator.unit, operator.error
        if len(values) == operator.size:
            noise = operator.size**0.5 * pairs.round_off
            error = MatrixError(
                spectral=pairs.round_off,
                frobenius=error.frobenius + noise,
                trace=error.trace + noise,
            )
            return SpectrumReport.of(
                Spectrum.of(values * unit, error=pairs.round_off * unit),
                k,
                percentile=percentile,
                matrix=matrix,
                samples=samples,
                reason="the Lanczos vectors span everything",
                pairs=pairs.scaled(unit),
                error=error.scaled(unit),
            )
        residuals = dots(locked.errors, locked.errors).diagonal().sqrt().cpu()
        found = lanczos_quadrature(
            operator, locked, residuals, probes=probes, steps=steps, generator=generator
        )
    seen = found.density if density else None
    pairs, notes = _verified(pairs, found.certificates)
    pairs = pairs.scaled(unit)
    smallest = pairs.estimates(-1)[:k]
    return SpectrumReport(
        method="matrix-free",
        reason=reason,
        matrix=matrix,
        parameters=operator.size,
        samples=samples,
        largest=pairs.estimates(1)[:k],
        smallest=smallest,
        trace=found.trace,
        frobenius_norm=found.frobenius_norm,
        index=None if seen is None else _index(smallest, seen),
        index_threshold=0.0 if seen is None else seen.resolution,
        condition_number=None if seen is None else _condition_number(pairs, seen, percentile),
        percentile=percentile,
        spectrum=None,
        density=seen,
        pairs=pairs,
        products=operator.count,
        notes=notes,
    )


def _index(smallest: Sequence[Estimate], seen: Density) -> Estimate:
    """The share below minus the resolution, counted where the smallest pairs reach that."""
    threshold = -seen.resolution
    if smallest[-1].low < threshold:
        return seen.negative_share
    value, low, high = (
        sum(getattr(end, name) < threshold for end in smallest) / seen.size
        for name in ("value", "high", "low")
    )
    return Estimate(value=value, standard_error=0.0, low=low, high=high)


def _condition_number(pairs: Eigenpairs, seen: Density, percentile: float) -> Estimate:
    """max|λ| over a percentile of |λ|; inf where this is within the density's resolution."""
    outermost = int(pairs.values.abs().argmax())
    top, slack = pairs.values[outermost].abs().item(), pairs.bounds[outermost].item()
    if top == 0:
        return Estimate.exact(math.nan)
    # Between the two eigenvalues that a percentile of a list lies between.
    position = percentile / 100 * (seen.size - 1)
    rank = int(position)
    ranks = (rank + 1, min(rank + 2, seen.size))
    bottom, above = (seen.quantile(place / seen.size, magnitude=True) for place in ranks)
    between = bottom.value + (position - rank) * (above.value - bottom.value)
    bottom = replace(bottom, value=between, high=above.high)
    floor = seen.resolution
    least = (top - slack) / max(bottom.high, floor)
    if bottom.value <= floor:
        return Estimate(value=math.inf, standard_error=math.inf, low=least, high=math.inf)
    value = top / bottom.value
    high = (top + slack) / bottom.low if bottom.low > floor else math.inf
    error = value * bottom.standard_error / bottom.value
    return Estimate(value=value, standard_error=error, low=least, high=high)


def _verified(pairs: Eigenpairs, runs: Sequence[Certificate]) -> tuple[Eigenpairs, tuple[str, ...]]:
    """The pairs with the certificates of the probes included, and notes on failures."""
    notes = []
    k = len(pairs) // 2
    top, bottom = pairs.values[:k].min().item(), pairs.values[-k:].max().item()
    slack = float(pairs.bounds.max())
    chances = []
    for sign, end, side in ((1, top, "above the largest"), (-1, bottom, "below the smallest")):
        edge = end + sign * max(slack, 1e-3 * abs(end))
        chances.append(math.prod(run.missed_beyond(edge, sign) for run in runs))
        if any(bool((sign * run.values > sign * edge).any()) for run in runs):
            notes.append(f"a probe found an eigenvalue {side} listed; call again with another seed")
    if not bool(pairs.converged.all()):
        notes.append("not every extreme eigenvalue met the tolerance; see its bound")
    missed = min(pairs.missed_probability, sum(chances))
    return replace(pairs, missed_probability=1.0 if notes else missed), tuple(notes)
