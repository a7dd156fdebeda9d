"""What is known of a spectrum, every number with its error bar: dense or matrix-free."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from resid_theory._check import as_generator, check_int, check_positive
from resid_theory.eigen.certificate import Certificate
from resid_theory.eigen.density import Density
from resid_theory.eigen.estimates import Eigenpairs, Estimate, mean_estimate, positive_mean
from resid_theory.eigen.krylov import Locked, coefficient_noise
from resid_theory.eigen.lanczos import BLOCK, search
from resid_theory.eigen.operator_log import Operator, RecordedOperator
from resid_theory.eigen.orthogonalization import dots
from resid_theory.eigen.quadrature import distribution, quadrature
from resid_theory.eigen.ritz_bounds import Wanted
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.eigen.traces import root

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["SpectrumReport", "spectral_estimates"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SpectrumReport:
    """What is known of the spectrum of a symmetric operator.

    Attributes:
        method: ``dense`` (every eigenvalue, exact) or ``matrix-free`` (from products).
        reason: Why this method, in a few words.
        matrix: What the operator is, e.g. ``hessian``.
        parameters: Number of eigenvalues P.
        samples: Samples of the data set behind the operator, where there is one.
        largest: Largest eigenvalues, descending, each with its bound; in units of the eigenvalues.
        smallest: Smallest eigenvalues, most negative first, each with its bound.
        trace: Sum of the eigenvalues.
        frobenius_norm: Square root of the sum of their squares.
        index: Share of eigenvalues below ``-index_threshold``, in [0, 1]; None where no density
            was asked for.
        index_threshold: |λ| up to this counts as zero in the index; in units of the eigenvalues.
        condition_number: max|λ| over a percentile of |λ|; dimensionless, inf where the percentile
            cannot be told from zero. None where no density was asked for.
        percentile: That percentile, in [0, 100].
        spectrum: All eigenvalues, where they are known.
        density: Their distribution, where it was estimated.
        pairs: Extreme eigenpairs with vectors, where they were computed.
        products: Products of the operator with one vector that were used.
        notes: What a reader should know before relying on a number.
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
    ) -> "SpectrumReport":
        """The report of a spectrum that is known exactly.

        Args:
            spectrum: All eigenvalues.
            k: Eigenvalues to name at each end.
            percentile: Of |λ|, in [0, 100], for the condition number.
            matrix: As the attribute.
            samples: As the attribute.
            reason: As the attribute.
            pairs: Extreme eigenpairs, where their vectors are known.

        Returns:
            A report whose bounds are those of a dense eigensolver, ``spectrum.zero_threshold``.

        Example:
            >>> report = SpectrumReport.of(rt.Spectrum.of([-2.0, 1.0, 4.0]), k=1)
            >>> report.largest[0].value, report.trace.value, round(report.index.value, 3)
            (4.0, 3.0, 0.333)
        """
        bound = spectrum.zero_threshold
        return cls(
            method="dense",
            reason=reason,
            matrix=matrix,
            parameters=spectrum.size,
            samples=samples,
            largest=_ends(spectrum, check_int("k", k), 1),
            smallest=_ends(spectrum, k, -1),
            trace=Estimate.exact(spectrum.trace, bound * spectrum.size**0.5),
            frobenius_norm=Estimate.exact(spectrum.frobenius_norm, bound * spectrum.size**0.5),
            index=Estimate.exact(spectrum.index),
            index_threshold=1e-10 * spectrum.max_magnitude,
            condition_number=Estimate.exact(spectrum.percentile_condition_number(percentile)),
            percentile=percentile,
            spectrum=spectrum,
            density=None,
            pairs=pairs,
            products=0 if pairs is None else pairs.products,
        )

    # -- for people --------------------------------------------------------------------------------

    def rows(self) -> list[tuple[str, Estimate]]:
        """The numbers by name, in the order of the table.

        Returns:
            Extremes first; what was not asked for is left out.
        """
        named = [(f"largest {i}", end) for i, end in enumerate(self.largest, 1)]
        named += [(f"smallest {i}", end) for i, end in enumerate(self.smallest, 1)]
        named += [("trace", self.trace), ("Frobenius norm", self.frobenius_norm)]
        if self.index is not None:
            named.append((f"index, share below {-self.index_threshold:.2g}", self.index))
        if self.condition_number is not None:
            label = f"condition number, percentile {self.percentile:g}"
            named.append((label, self.condition_number))
        return named

    def frame(self) -> "DataFrame":
        """The numbers as a pandas data frame.

        Returns:
            One row a number: ``quantity``, ``value``, ``standard_error``, ``low`` and ``high`` (the
            95 % interval), and what they come from: ``method``, ``matrix``, ``parameters``.
        """
        from pandas import DataFrame

        return DataFrame(
            [
                {
                    "quantity": name,
                    "value": number.value,
                    "standard_error": number.standard_error,
                    "low": number.low,
                    "high": number.high,
                    "method": self.method,
                    "matrix": self.matrix,
                    "parameters": self.parameters,
                }
                for name, number in self.rows()
            ]
        )

    @property
    def _title(self) -> str:
        data = "" if self.samples is None else f", {self.samples} samples"
        cost = f", {self.products} products" if self.products else ""
        return f"{self.matrix}, P = {self.parameters}{data}: {self.method}{cost} ({self.reason})"

    def __str__(self) -> str:
        """A table for people."""
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        lines = [self._title, *(f"  {name:<{width}}  {number}" for name, number in rows)]
        return "\n".join([*lines, *(f"  Note: {note}." for note in self.notes)])

    def _repr_markdown_(self) -> str:
        """The table as a notebook shows it."""
        lines = [f"**{self._title}**", "", "| quantity | value |", "|---|---|"]
        lines += [f"| {name} | {number} |" for name, number in self.rows()]
        return "\n".join([*lines, *(f"\nNote: {note}." for note in self.notes)])


def _ends(spectrum: Spectrum, k: int, sign: int) -> tuple[Estimate, ...]:
    """The k outermost eigenvalues of one end."""
    levels, counts = spectrum.levels, spectrum.multiplicities
    if sign > 0:
        levels, counts = levels.flip(0), counts.flip(0)
    needed = levels[:k].repeat_interleave(counts[:k].clamp_max(k))[:k]
    return tuple(Estimate.exact(value, spectrum.zero_threshold) for value in needed.tolist())


# -- matrix-free -----------------------------------------------------------------------------------


def spectral_estimates(
    A: Operator,
    k: int = 5,
    *,
    density: bool = True,
    percentile: float = 10.0,
    tolerance: float = 1e-3,
    probes: int = 10,
    steps: int = 100,
    generator: torch.Generator | int = 0,
    capacity: int | None = None,
    precision: torch.dtype | None = None,
    matrix: str = "operator",
    samples: int | None = None,
    reason: str = "asked for",
    folder: str | Path | None = None,
    progress: bool = False,
) -> SpectrumReport:
    """Everything about a spectrum that products can tell, from shared runs.

    The extreme eigenpairs come first. Their span U is then treated exactly: its part of the trace
    and of the Frobenius norm needs no further product, and the probes of the density stay in its
    complement. The first product of each probe gives the rest of the trace (as Hutch++ does, with U
    for the sketch) and of the norm; all of them together the density, and from it the index and the
    condition number. Each probe is also one more search for an eigenvalue beyond the extremes.

    Args:
        A: As in :func:`eigenpairs`.
        k: Pairs at each end.
        density: Whether to run the probes for ``steps`` products; else for one each.
        percentile: Of |λ|, in [0, 100], for the condition number.
        tolerance: As in :func:`eigenpairs`.
        probes: As in :func:`spectral_density`.
        steps: As in :func:`spectral_density`.
        generator: For all random vectors: a generator, or the seed of a new one.
        capacity: As in :func:`eigenpairs`.
        precision: As in :func:`eigenpairs`.
        matrix: As the attribute of the report.
        samples: As the attribute of the report.
        reason: As the attribute of the report.
        folder: As in :func:`eigenpairs`.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The report; ``method`` is ``matrix-free``.

    Raises:
        ValueError: If A is no symmetric operator or an argument is out of range.

    Example:
        >>> A = torch.diag(torch.cat([torch.linspace(-1, 1, 200), torch.tensor([9.0, 7.0])]))
        >>> report = rt.eigen.spectral_estimates(A, k=2, steps=30)
        >>> report.trace.covers(16.0), [round(end.value, 2) for end in report.largest]
        (True, [9.0, 7.0])
    """
    generator = as_generator(generator)
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile: got {percentile}, needs a number in [0, 100]")
    steps = check_int("steps", steps) if density else 1
    with RecordedOperator(
        A, folder=folder, progress=progress, label="spectrum", precision=precision
    ) as products:
        pairs, locked = search(
            products,
            Wanted("both", check_int("k", k)),
            block=BLOCK,
            tolerance=check_positive("tolerance", tolerance),
            generator=generator,
            capacity=capacity,
        )
        if len(locked.values) == products.size:
            report = SpectrumReport.of(Spectrum.of(locked.values), k, percentile=percentile)
            return _spanned(report, pairs, locked, k, matrix=matrix, samples=samples)
        found = quadrature(
            products,
            locked.vectors,
            probes=check_int("probes", probes),
            steps=steps,
            generator=generator,
        )
        residuals = dots(locked.errors, locked.errors).diagonal().sqrt().cpu()
        known_error = 2 * residuals.sum().item() / products.size
        seen = distribution(products, found, locked.values, known_error) if density else None
    noise = coefficient_noise(products.precision, products.size, found.scale)
    pairs, notes = _confirmed(pairs, found.certificates(products.size - len(locked.values), noise))
    rest = products.size - len(locked.values)
    inside = locked.values.square().sum().item() + residuals.square().sum().item()
    squares = positive_mean(found.squares, scale=rest, offset=inside)
    return SpectrumReport(
        method="matrix-free",
        reason=reason,
        matrix=matrix,
        parameters=products.size,
        samples=samples,
        largest=_bounded(pairs, k, 1),
        smallest=_bounded(pairs, k, -1),
        trace=mean_estimate(found.first, scale=rest, offset=locked.values.sum().item()),
        frobenius_norm=root(squares),
        index=None if seen is None else seen.negative_share,
        index_threshold=0.0 if seen is None else seen.resolution,
        condition_number=None if seen is None else condition_number(pairs, seen, percentile),
        percentile=percentile,
        spectrum=None,
        density=seen,
        pairs=pairs,
        products=products.count,
        notes=notes,
    )


def _spanned(
    report: SpectrumReport,
    pairs: Eigenpairs,
    locked: Locked,
    k: int,
    *,
    matrix: str,
    samples: int | None,
) -> SpectrumReport:
    """The report where the Lanczos vectors span everything: exact to the products' rounding."""
    noise, values = locked.noise, locked.values
    threshold = max(report.index_threshold, noise)
    unsure = ((values + threshold).abs() <= noise).double().mean().item()
    return replace(
        report,
        reason="the Lanczos vectors span everything",
        matrix=matrix,
        samples=samples,
        largest=_bounded(pairs, k, 1),
        smallest=_bounded(pairs, k, -1),
        trace=Estimate.exact(values.sum().item(), noise * len(values)),
        frobenius_norm=Estimate.exact(values.norm().item(), noise * len(values) ** 0.5),
        index=Estimate.exact((values < -threshold).double().mean().item(), unsure),
        index_threshold=threshold,
        pairs=pairs,
        products=pairs.products,
    )


def _bounded(pairs: Eigenpairs, k: int, sign: int) -> tuple[Estimate, ...]:
    order = pairs.values.argsort(descending=sign > 0, stable=True)[:k]
    values, bounds = pairs.values[order].tolist(), pairs.bounds[order].tolist()
    return tuple(Estimate.exact(value, bound) for value, bound in zip(values, bounds, strict=True))


def condition_number(pairs: Eigenpairs, seen: Density, percentile: float) -> Estimate:
    """max|λ| over a percentile of |λ|, where the percentile can be told from zero.

    Args:
        pairs: The extremes, at both ends.
        seen: The density.
        percentile: In [0, 100].

    Returns:
        The ratio; inf with a lower end where the percentile is within the density's resolution.
    """
    outermost = int(pairs.values.abs().argmax())
    top, slack = pairs.values[outermost].abs().item(), pairs.bounds[outermost].item()
    if top == 0:
        return Estimate.exact(math.nan)
    bottom = seen.magnitude_quantile(percentile / 100)
    floor = seen.resolution
    least = (top - slack) / max(bottom.high, floor)
    if bottom.value <= floor:
        return Estimate(value=math.inf, standard_error=math.inf, low=least, high=math.inf)
    value = top / bottom.value
    high = (top + slack) / bottom.low if bottom.low > floor else math.inf
    error = value * bottom.standard_error / bottom.value
    return Estimate(value=value, standard_error=error, low=least, high=high)


def _confirmed(
    pairs: Eigenpairs, runs: Sequence[Certificate]
) -> tuple[Eigenpairs, tuple[str, ...]]:
    """The pairs with what the probes add to their certificate, and what went wrong."""
    notes = []
    k = len(pairs) // 2
    top, bottom = pairs.values[:k].min().item(), pairs.values[-k:].max().item()
    slack = float(pairs.bounds.max())
    chances = []
    for sign, end in ((1, top), (-1, bottom)):
        edge = end + sign * max(slack, 1e-3 * abs(end))
        chances.append(math.prod(run.missed(edge, sign) for run in runs))
        seen = max(sign * run.values[-1 if sign > 0 else 0].item() for run in runs)
        if seen > sign * edge:
            side = "above the largest" if sign > 0 else "below the smallest"
            notes.append(f"a probe found an eigenvalue {side} named; ask again with another seed")
    if not bool(pairs.converged.all()):
        notes.append("not every extreme eigenvalue met the tolerance; see its bound")
    missed = min(pairs.missed_probability, sum(chances))
    return replace(pairs, missed_probability=1.0 if notes else missed), tuple(notes)
