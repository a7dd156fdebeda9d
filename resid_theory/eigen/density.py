"""Distribution of eigenvalues from random probes, with error bars over the probes."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from resid_theory._check import as_tensor, check_finite, check_positive, check_within
from resid_theory.eigen.estimate import Estimate, mean_estimate, student
from resid_theory.eigen.gauss_rules import RESOLVED, jacobi_matrix, nearest, radau_rule
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.eigen.wasserstein import Masses
from resid_theory.runtime.result import Columns, Result


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve(Result):
    """A function on a grid, with a standard error at every point.

    Attributes:
        grid: (n,), ascending, in units of the eigenvalues.
        values: (n,).
        standard_errors: (n,), over probes; nan for a single probe.
        width: Standard deviation of the smoothing kernel, in units of the eigenvalues; 0 for none.
    """

    grid: Tensor
    values: Tensor
    standard_errors: Tensor
    width: float

    headline = "Curve over eigenvalues, kernel of width {0.width:.4g}"
    tabulated = {"eigenvalue": "grid", "value": "values", "value_error": "standard_errors"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Density(Result):
    """Distribution of the eigenvalues of a symmetric operator: known ones, and a sample of probes.

    A probe z, uniform on the unit sphere of the complement of the known eigenvectors, weights every
    other eigenvalue by <u, z>², with the same mean for all. Lanczos from z gives the Gauss
    quadrature of that measure. Probes are independent, so their spread is the sampling error.

    Attributes:
        size: Number of eigenvalues P.
        nodes: (probes, m), ascending in each row, float64; in units of the eigenvalues.
        weights: (probes, m), each row sums to one; zero where a probe needed fewer nodes.
        diagonals: (probes, m), of the Jacobi matrices whose eigenvalues the nodes are.
        links: (probes, m), their off-diagonals; the last one leads out of the Krylov space.
        complete: (probes,), whether a probe's Krylov space was invariant: its quadrature is exact.
        known: (l,), eigenvalues that were found and deflated.
        known_residuals: (l,), residuals of their vectors: an eigenvalue lies within each.
        known_error: Largest contribution to a Wasserstein distance of their residuals, twice the
            nuclear norm of these over P (Mirsky's inequality), and of the error of the products; in
            units of the eigenvalues.
        round_off: Largest shift of an eigenvalue by the error of the products, and magnitude that
            counts as zero; in units of the eigenvalues.
        products: Number of products of the operator with one vector.

    Source:
        Golub & Welsch 1969, "Calculation of Gauss quadrature rules"; Bai, Fahey & Golub 1996, "Some
        large-scale matrix computation problems"; Ubaru, Chen & Saad 2017, "Fast estimation of
        tr(f(A)) via stochastic Lanczos quadrature".
    """

    size: int
    nodes: Tensor
    weights: Tensor
    diagonals: Tensor
    links: Tensor
    complete: Tensor
    known: Tensor
    known_residuals: Tensor
    known_error: float
    round_off: float
    products: int

    headline = (
        "Density of P = {0.size} eigenvalues: {0.probes} probes of {0.nodes.shape[1]} nodes, "
        "{0.known.shape[0]} known ones, {0.products} products"
    )

    def table(self) -> Columns:
        """One row for each node and each known eigenvalue (probe -1), with its share of all."""
        atoms = torch.arange(self.probes).repeat_interleave(self.nodes.shape[1])
        share, known = self._share / self.probes, torch.ones_like(self.known)
        return {
            "probe": torch.cat([atoms, -known.long()]),
            "eigenvalue": torch.cat([self.nodes.flatten(), self.known]),
            "share": torch.cat([share * self.weights.flatten(), known / self.size]),
        }

    def shown(self) -> Columns:
        """Quantiles and the share of negative eigenvalues, each with its 95 % interval."""
        levels = (0.01, 0.1, 0.5, 0.9, 0.99)
        found = {f"quantile {level:g}": self.quantile(level) for level in levels}
        found["share of negative ones"] = self.negative_share
        return {"quantity": list(found), "value": list(map(str, found.values()))}

    @property
    def probes(self) -> int:
        """Number of independent probes."""
        return len(self.nodes)

    @cached_property
    def _seen(self) -> Tensor:
        """All nodes and known eigenvalues."""
        return torch.cat([self.nodes.reshape(-1), self.known])

    @property
    def largest(self) -> float:
        """Largest node or known eigenvalue."""
        return self._seen.max().item()

    @property
    def smallest(self) -> float:
        """Smallest (most negative) node or known eigenvalue."""
        return self._seen.min().item()

    @property
    def _share(self) -> float:
        """Share of the eigenvalues that the probes represent."""
        return (self.size - len(self.known)) / self.size

    def _sorted(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Some places of all nodes and known eigenvalues, and their weights, ascending."""
        known = torch.full_like(self.known, 1 / self.size)
        weights = torch.cat([(self._share / self.probes * self.weights).reshape(-1), known])
        places, order = places.sort()
        return places, weights[order]

    @cached_property
    def _residuals(self) -> Tensor:
        """Residual of the Ritz vector of each node, (probes, m)."""
        residuals = torch.zeros_like(self.nodes)
        for number in (~self.complete).nonzero().flatten().tolist():
            links = self.links[number]
            vectors = torch.linalg.eigh(jacobi_matrix(self.diagonals[number], links)).eigenvectors
            residuals[number] = links[-1] * vectors[-1].abs()
        return residuals

    @property
    def _reach(self) -> Tensor:
        """Distance of each atom from an eigenvalue at most, as ``_sorted`` takes them."""
        return torch.cat([self._residuals.reshape(-1), self.known_residuals]) + self.round_off

    @cached_property
    def _measures(self) -> list[Masses]:
        """The measure of each probe, with mass one."""
        # Half of the weight of a node lies on either side of it. Where two nodes stand for many
        # eigenvalues, the mass between them is spread evenly. It is as much as the lighter one
        # shows: the rest of the heavier one may be a single level.
        gaps = self.nodes.diff(dim=1)
        many = self._residuals > RESOLVED * nearest(self.nodes)
        lighter = torch.minimum(self.weights[:, 1:], self.weights[:, :-1])
        spread = torch.where(many[:, 1:] & many[:, :-1] & (gaps > 0), lighter, 0.0)
        atoms = self.weights.clone()
        atoms[:, 1:] -= spread / 2
        atoms[:, :-1] -= spread / 2
        return [
            Masses(
                places=row,
                weights=weights,
                starts=row[:-1][between > 0],
                ends=row[1:][between > 0],
                spread=between[between > 0],
            )
            for row, weights, between in zip(self.nodes, atoms, spread, strict=True)
        ]

    def cumulative(self, grid: Tensor) -> Curve:
        """Share of eigenvalues up to and including each place.

        Args:
            grid: (n,), in units of the eigenvalues.

        Returns:
            The share, in [0, 1], with its standard error.

        Raises:
            ValueError: If a place is not finite.
        """
        grid = _places(grid)
        below = (self.known[:, None] <= grid).double().sum(0) / self.size
        by_probe = torch.stack([measure.below(grid)[0] for measure in self._measures])
        return self._curve(grid, self._share * by_probe, below, 0.0)

    def smoothed(self, grid: Tensor | None = None, *, width: float | None = None) -> Curve:
        """The density of eigenvalues, convolved with a normal kernel.

        Args:
            grid: (n,), in units of the eigenvalues; by default 1,001 places, from three widths
                below the smallest eigenvalue found to three above the largest.
            width: Standard deviation of the kernel; by default this range over the number of nodes,
                which is the resolution of the quadrature.

        Returns:
            Share of eigenvalues per unit of eigenvalue, with its standard error.

        Raises:
            ValueError: If a place is not finite, or the width not positive.
        """
        spread = self.largest - self.smallest
        if spread <= 2 * self.round_off:  # a single level
            spread = abs(self.largest) or 1.0
        width = spread / self.nodes.shape[1] if width is None else check_positive("width", width)
        if grid is None:
            low, high = self.smallest - 3 * width, self.largest + 3 * width
            grid = torch.linspace(low, high, 1001, dtype=torch.float64)
        grid = _places(grid)
        by_probe = torch.stack(
            [_kernel(grid, row, width) @ w for row, w in zip(self.nodes, self.weights, strict=True)]
        )
        known = _kernel(grid, self.known, width).sum(1) / self.size
        return self._curve(grid, self._share * by_probe, known, width)

    def _curve(self, grid: Tensor, by_probe: Tensor, offset: Tensor, width: float) -> Curve:
        missing = torch.full_like(grid, math.nan)
        errors = by_probe.std(0) if self.probes > 1 else missing
        return Curve(
            grid=grid,
            values=offset + by_probe.mean(0),
            standard_errors=errors / math.sqrt(self.probes),
            width=width,
        )

    def share_below(self, threshold: float) -> Estimate:
        """Share of eigenvalues up to and including a threshold, in [0, 1].

        Args:
            threshold: In units of the eigenvalues.

        Returns:
            The share. Where a probe's quadrature is not exact, its rule with a node at the
            threshold (Gauss-Radau) bounds the share from both sides: the value is the middle, and
            the interval holds both bounds.

        Raises:
            ValueError: If the threshold is not finite.

        Source:
            Golub & Meurant 2010, "Matrices, Moments and Quadrature with Applications", Section 6.2,
            for the rule; the inequalities of Chebyshev, Markov and Stieltjes for the bounds.
        """
        threshold = check_within("threshold", threshold, -math.inf, math.inf, "()")
        # An eigenvalue as close as its error may be on either side.
        ends = threshold - self.round_off, threshold + self.round_off
        least, most = self._brackets(ends[0])[0], self._brackets(ends[1])[1]
        farthest, nearest = self.known + self.known_residuals, self.known - self.known_residuals
        pairs = (farthest, ends[0]), (self.known, threshold), (nearest, ends[1])
        below, known, above = (int((v <= place).sum()) / self.size for v, place in pairs)
        low = mean_estimate(least, scale=self._share, offset=below).low
        high = mean_estimate(most, scale=self._share, offset=above).high
        middle = mean_estimate((least + most) / 2, scale=self._share, offset=known)
        return replace(middle, low=max(below, min(low, 1.0)), high=min(above + self._share, high))

    def _brackets(self, place: float) -> tuple[Tensor, Tensor]:
        """Bounds on the share of each probe's measure up to and including a place, (probes,)."""
        least = (self.weights * (self.nodes <= place)).sum(1)
        most = least.clone()
        for number in (~self.complete).nonzero().flatten().tolist():
            nodes, weights = radau_rule(self.diagonals[number], self.links[number], place)
            here = int((nodes - place).abs().argmin())
            least[number] = weights[:here].sum()
            most[number] = weights[: here + 1].sum()
        return least, most

    @property
    def negative_share(self) -> Estimate:
        """Share of eigenvalues below minus ``resolution``, in [0, 1]: the index."""
        # The next number below leaves out the eigenvalues at the threshold.
        return self.share_below(math.nextafter(-self.resolution, -math.inf))

    @cached_property
    def resolution(self) -> float:
        """|λ| up to this cannot be distinguished from zero; in units of the eigenvalues.

        ``round_off`` where every quadrature is exact; else half the distance from the node nearest
        to zero to its nearer neighbour, the median over probes.
        """
        if bool(self.complete.all()):
            return self.round_off
        spacings = []
        for row, weights in zip(self.nodes, self.weights, strict=True):
            nodes = row[weights > 0]
            if len(nodes) > 1:
                near = int(nodes.abs().argmin())
                gaps = nodes.diff()[max(0, near - 1) : near + 1]
                spacings.append(gaps.min().item() / 2)
        median = sorted(spacings)[len(spacings) // 2] if spacings else 0.0
        return max(self.round_off, median)

    def quantile(self, share: float, *, magnitude: bool = False) -> Estimate:
        """The smallest λ, or |λ| with ``magnitude``, up to which at least a share of all lies.

        The interval inverts that of the cumulative share (Woodruff 1952, "Confidence intervals for
        medians and other position measures"), with the quadrature's bounds where it is not exact,
        and the residuals of its nodes.

        Args:
            share: In [0, 1].
            magnitude: Whether to order the eigenvalues by their magnitude.

        Returns:
            The quantile, in units of the eigenvalues.

        Raises:
            ValueError: If the share is outside [0, 1].
        """
        share = check_within("share", share, 0, 1)
        places = self._seen.abs() if magnitude else self._seen
        value = _place(self._sorted(places), share)
        half = error = math.inf
        if self.probes > 1:
            least, most = self._brackets(value)
            if magnitude:
                below = self._brackets(math.nextafter(-value, -math.inf))
                least, most = least - below[1], most - below[0]
            deviation = ((least + most) / 2).std().item() / math.sqrt(self.probes)
            gap = (most - least).mean().item() / 2
            half = self._share * (student(self.probes - 1) * deviation + gap)
        # Where the measure has a node, the spectrum has an eigenvalue within the node's residual.
        low = _place(self._sorted(places - self._reach), share - half)
        high = _place(self._sorted(places + self._reach), share + half)
        low = max(low, 0.0) if magnitude else low
        if self.probes > 1:
            error = (high - low) / (2 * student(self.probes - 1))
        return Estimate(value=value, standard_error=error, low=low, high=high)

    # -- comparison with the exact spectrum --------------------------------------------------------

    def wasserstein_distance(self, exact: Spectrum) -> float:
        """1-Wasserstein distance from the exact distribution, in units of the eigenvalues.

        Args:
            exact: All P eigenvalues.

        Returns:
            The integral of the absolute difference of the cumulative shares.

        Raises:
            ValueError: If the spectrum has another size.
        """
        if exact.size != self.size:
            raise ValueError(
                f"exact: has {exact.size} eigenvalues, the density {self.size}; needs equal sizes"
            )
        known = torch.full_like(self.known, 1 / self.size)
        every = Masses.sum(self._measures, self._share / self.probes, self.known, known)
        return every.distance(exact.levels, exact.multiplicities.double() / self.size)

    @cached_property
    def wasserstein_error(self) -> float:
        """Upper end of the 95 % interval of the distance to the truth, in units of the eigenvalues.

        The sum of three errors. Deflation: ``known_error``. Sampling: the integral of the
        half-width of the cumulative share. Quadrature: zero where exact, else the inequalities of
        Chebyshev, Markov and Stieltjes, by which the cumulative share of a Gauss quadrature differs
        from the truth between two nodes at most by the weight of either.

        Source:
            Chen, Trogdon & Ubaru 2021, "Analysis of stochastic Lanczos quadrature for spectrum
            approximation", Section 3.
        """
        return self.sampling_error + self.quadrature_error + self.known_error

    @cached_property
    def sampling_error(self) -> float:
        """The part of ``wasserstein_error`` that more probes reduce; inf for a single probe."""
        if self.probes < 2:
            return math.inf
        places = self._seen.unique()
        if len(places) == 1:  # torch warns where there is no place between
            return 0.0
        errors = self.cumulative((places[1:] + places[:-1]) / 2).standard_errors
        return student(self.probes - 1) * (errors * places.diff()).sum().item()

    @cached_property
    def quadrature_error(self) -> float:
        """The part of ``wasserstein_error`` that more steps reduce."""
        left, right = self.weights[:, :-1], self.weights[:, 1:]
        # Mass that is spread between two nodes adds a quarter of itself.
        heights = torch.maximum(left, right) + torch.minimum(left, right) / 4
        bounds = (heights * self.nodes.diff(dim=1)).sum(1)
        return self._share * torch.where(self.complete, 0.0, bounds).mean().item()


def _places(grid: Tensor) -> Tensor:
    """Places of a curve, (n,), float64 on the CPU."""
    places = check_finite("grid", as_tensor("grid", grid)).detach().reshape(-1)
    return places.to("cpu", torch.float64, copy=True)


def _place(atoms: tuple[Tensor, Tensor], share: float) -> float:
    """The first of sorted atoms at which their weights add up to a share."""
    totals = atoms[1].cumsum(0)
    # Rounding of the sums must not move a share that falls on the edge of an atom.
    reached = totals >= share - 4 * len(totals) * torch.finfo(torch.float64).eps
    return atoms[0][int(reached.int().argmax()) if bool(reached.any()) else -1].item()


def _kernel(grid: Tensor, places: Tensor, width: float) -> Tensor:
    """Normal densities around places, (grid, places)."""
    return torch.exp(-(((grid[:, None] - places) / width) ** 2) / 2) / (
        width * math.sqrt(2 * math.pi)
    )
