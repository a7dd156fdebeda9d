r"""Networks with small weights that interpolate, built unit by unit ("Theorem 1").

A net :math:`z_l = z_{l-1} + W^{l,2} \mathrm{ReLU}(W^{l,1} z_{l-1} + b^l)` carries the columns
:math:`x_i` of the unit sphere to :math:`y_i`, one after the other, along paths that keep away from
the others; a unit's weights are as large as the square root of its step. With
:math:`\rho` the smallest distance of two points that must be kept apart and L units for m columns

.. math:: \max_{l,k} \|W^{l,k}\|_F \le \frac{2\pi}{\rho} \sqrt{\frac{m}{L - m}},

and every net of this form with all norms at most w satisfies

.. math:: (1 - w^2)^L \le \|y_i - y_j\| / \|x_i - x_j\| \le (1 + w^2)^L.

So :math:`L^{-1/2}` is the best possible rate, and two samples with one target need a unit of norm 1
at least: one-hot targets can be met exactly by no net with small weights. They can be perturbed
(``mode="perturbed"``), or met up to a tolerance at logarithmic cost (``mode="merge"``).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import as_generator, as_tensor, check_choice, check_int, check_positive
from resid_theory.networks.shortcut import ShortcutNet
from resid_theory.runtime.result import Result
from resid_theory.runtime.storable import Storable
from resid_theory.theory.interpolation.construction import (
    exact_schedule,
    merging_schedule,
    sphere_points,
)
from resid_theory.theory.interpolation.error_correction import BRACE_COST, with_braces
from resid_theory.theory.interpolation.norm_bounds import CLEARANCE, least_norm, perturbed
from resid_theory.theory.interpolation.schedule import Schedule
from resid_theory.theory.interpolation.single_move import Steps
from resid_theory.theory.interpolation.sphere_paths import PathChart, chart

MODES = ("exact", "perturbed", "merge")
ALLOCATIONS = ("greedy", "uniform")
_ROUNDED = 1e-12  # a larger error has been amplified: a unit's own rounding is 1e-16
_DRAWN = 1024  # points of a drawn path


class InterpolationNet(ShortcutNet, Storable):
    r"""The paper's equation (3): units of two matrices, a bias and a ReLU under an identity.

    It is ``ShortcutNet(d, L, 2, mid="relu", bias=True)``, made from its parameters.

    Args:
        weights: W1 and W2 of every unit, (L, 2, d, d).
        bias: b of every unit, (L, d).

    Source:
        Li, Jiao, Han & Weissman, "Demystifying ResNet", arXiv:1611.01186, equation (3).
    """

    weights: nn.Parameter
    bias: nn.Parameter

    def __init__(self, weights: Tensor, bias: Tensor) -> None:
        super().__init__(bias.shape[1], len(bias), 2, mid="relu", bias=True)
        self.weights, self.bias = nn.Parameter(weights), nn.Parameter(bias)

    @property
    def norms(self) -> Tensor:
        """Frobenius norms of W1 and W2 of every unit, (L, 2)."""
        return self.weights.detach().flatten(2).norm(dim=2)

    def states(self, x: Tensor) -> Tensor:
        """Inputs (..., d) and the outputs of all units, (L + 1, ..., d), without a graph."""
        states = [x]
        with torch.no_grad():
            for (first, second), bias in zip(self.weights, self.bias, strict=True):
                states.append(states[-1] + (states[-1] @ first.mT + bias).relu() @ second.mT)
        return torch.stack(states)


@dataclass(frozen=True, kw_only=True, eq=False)
class Interpolation(Result):
    """A net that maps inputs to targets, with bounds of its norms.

    Norms, outputs and errors are those of ``net`` as it is now, also after further training; the
    bounds, targets and paths are those of the construction.

    Attributes:
        net: The module; its parameters may be trained.
        x: Inputs, (m, d), float64.
        y: The targets asked for, (m, d).
        targets: The points that the construction leads to, (m, d), as the mode says.
        mode: ``"exact"``, ``"perturbed"`` or ``"merge"``.
        tolerance: Distance of ``targets`` from ``y`` allowed in ``"merge"`` mode, otherwise 0.
        separation: rho, the smallest distance of two points that are kept apart; at most 2.
        upper_bound: Upper bound of ``largest_norm`` by the theorem; inf for too few units.
        movers: The sample that each unit moves, (L,); -1 for none.
        positions: Position of the column that a unit moves, after the move, (L, d).
        schedule: The paths of the samples, in the order of travel.

    Source:
        Li, Jiao, Han & Weissman, "Demystifying ResNet", arXiv:1611.01186, Theorem 1.
    """

    net: InterpolationNet
    x: Tensor
    y: Tensor
    targets: Tensor
    mode: str
    tolerance: float
    separation: float
    upper_bound: float
    movers: Tensor
    positions: Tensor
    schedule: Schedule

    headline = (
        "interpolation ({0.mode}) by {0.units} units: norms at most {0.largest_norm:.4g}, bounds "
        "{0.lower_bound:.4g} and {0.upper_bound:.4g}"
    )
    tabulated = {
        "sample": lambda found: range(len(found.x)),
        "units": lambda found: found.movers[found.movers >= 0].bincount(minlength=len(found.x)),
        "from_input": lambda found: (found.output - found.x).norm(dim=1),
        "from_target": lambda found: (found.output - found.targets).norm(dim=1),
    }

    @property
    def units(self) -> int:
        """Number of units L."""
        return len(self.movers)

    @property
    def output(self) -> Tensor:
        """The net's output for ``x``, (m, d), without a graph."""
        with torch.no_grad():
            return self.net(self.x)

    @property
    def error(self) -> float:
        """Largest distance of an output from its row of ``targets``."""
        return float((self.output - self.targets).norm(dim=1).max())

    @property
    def loss(self) -> float:
        """Half the squared distance of output and ``y``, mean over samples."""
        return 0.5 * float((self.output - self.y).square().sum(1).mean())

    @property
    def largest_norm(self) -> float:
        """Largest Frobenius norm of a weight matrix."""
        return float(self.net.norms.max())

    @property
    def lower_bound(self) -> float:
        """Lower bound of the largest norm of any net of as many units: :func:`least_norm`."""
        wanted = self.y if self.mode == "merge" else self.targets
        return least_norm(self.x, wanted, units=self.units, tolerance=self.tolerance)

    def path(self, sample: int) -> Tensor:
        """Planned positions of a sample's column, (steps + 1, d): at first and after each move."""
        if check_int("sample", sample, 0) >= len(self.x):
            raise ValueError(f"sample: got {sample}, needs a number below {len(self.x)}")
        return torch.cat([self.x[sample : sample + 1], self.positions[self.movers == sample]])

    def chart(self, sample: int) -> PathChart:
        """A chart of the sphere around a moving sample's path, for the plots."""
        steps, schedule = self.path(sample).cpu(), self.schedule
        if sample not in schedule.moving.tolist():
            raise ValueError(f"sample: got {sample}, needs one that moves; its target is its input")
        path, others = schedule.paths.trace(sample, _DRAWN), schedule.others(sample)
        return chart(path, steps, others, self.separation / 2)


def interpolate(
    x: Any, y: Any, *, units: int, mode: str = "exact", allocation: str = "greedy",
    braces: bool = True, tolerance: float | None = None, noise: float | None = None,
    draws: int = 32, generator: torch.Generator | int = 0,
) -> Interpolation:  # fmt: skip
    r"""Build a net of units with small weights that maps every input to its target.

    Columns travel one after the other, in the order of the samples, each along the great arc to its
    target with detours around the others. All norms are at most
    :math:`(2 \pi / \rho) \sqrt{m / (L - m)}`.

    Args:
        x: Inputs, unit vectors, (m, d), d at least 3.
        y: Targets, unit vectors, (m, d).
        units: Number of units L, at least that of samples that move; for a finite bound more (for
            ``"merge"`` more than three times as many).
        mode: ``"exact"``: targets must be distinct. ``"perturbed"``: they are moved apart first,
            and the loss that remains is ``result.loss``. ``"merge"``: every output is within
            ``tolerance`` of its target, equal targets allowed; costs grow with log(1/tolerance).
        allocation: ``"greedy"``: steps in proportion to the gap, which makes all norms nearly
            equal; ``"uniform"``: steps of equal length, the paper's. Not for ``"merge"``.
        braces: Whether units get two more rows that correct rounding errors, if without them
            rounding moves an output by more than 1e-12, and as far as the bound allows; norms grow
            by half. The paper's units have none: in a crowd of columns errors grow to any size.
        tolerance: For ``"merge"``: largest distance of an output from its target; 1e-3 by default,
            an eighth of the separation at most.
        noise: For ``"perturbed"``: length of the perturbation; 0.1 by default.
        draws: For ``"perturbed"``: number of perturbations drawn, of which the best is taken.
        generator: For ``"perturbed"``: generator or seed of the perturbations.

    Returns:
        The net with its paths and bounds, on the device of ``x``, in float64.

    Raises:
        ValueError: If points are not on the sphere, d < 3, two inputs are equal, points are too
            near to be kept apart in float64, the units are too few, or an argument does not belong
            to the mode.

    Source:
        Li, Jiao, Han & Weissman, "Demystifying ResNet", arXiv:1611.01186, Theorem 1 and Lemmas 1
        and 2; constants re-derived, detours of half the paper's radius. Greedy steps, braces and
        merging are derived here.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(2, 6, 4, dtype=torch.float64, generator=generator)
        >>> x, y = x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True)
        >>> found = rt.theory.interpolate(x, y, units=600)
        >>> bool((found.net(x) - y).abs().max() < 1e-9)
        True
        >>> found.lower_bound < found.largest_norm < found.upper_bound
        True
    """
    check_choice("mode", mode, MODES)
    check_choice("allocation", allocation, ALLOCATIONS)
    check_int("units", units)
    check_int("draws", draws)
    if mode == "merge" and allocation != "greedy":
        raise ValueError(f"allocation: got {allocation!r}, needs 'greedy' for mode 'merge'")
    if mode != "perturbed" and generator != 0:
        raise ValueError(f"generator: got one, needs mode 'perturbed'; the mode is {mode!r}")
    tolerance = _of_mode("tolerance", tolerance, 1e-3, mode, "merge")
    noise = _of_mode("noise", noise, 0.1, mode, "perturbed")
    device, (x, y) = as_tensor("x", x).device, sphere_points(x, y)
    if mode == "merge":
        schedule = merging_schedule(x, y, tolerance=tolerance)
    elif mode == "perturbed":
        source = as_generator(generator)
        schedule = exact_schedule(x, perturbed(x, y, noise=noise, draws=draws, generator=source))
    else:
        schedule = exact_schedule(x, y)
    steps = schedule.steps(units, allocation)
    movers, positions = torch.full((units,), -1), x.new_zeros(units, x.shape[1])
    movers[: len(steps.rows)], positions[: len(steps.rows)] = steps.rows, steps.ends
    return Interpolation(
        net=_net(schedule, steps, units, braces=braces).to(device), x=x.to(device), y=y.to(device),
        targets=schedule.ends.to(device), mode=mode, tolerance=schedule.tolerance,
        separation=schedule.separation, upper_bound=schedule.norm_bound(units), movers=movers,
        positions=positions.to(device), schedule=schedule,
    )  # fmt: skip


def _of_mode(argument: str, given: float | None, usual: float, mode: str, owner: str) -> float:
    """The value of an argument that only one mode has."""
    if given is not None and mode != owner:
        raise ValueError(f"{argument}: got {given!r}, needs mode {owner!r}; the mode is {mode!r}")
    if mode != owner:
        return 0.0
    return usual if given is None else check_positive(argument, given)


def _net(schedule: Schedule, steps: Steps, units: int, *, braces: bool) -> InterpolationNet:
    """The net, with braces if rounding moves the outputs of the net without."""
    net = _net_of(steps, units)
    with torch.no_grad():
        error = (net(schedule.starts) - schedule.ends).abs().max()
    if not braces or error <= _ROUNDED:  # not >, which an overflow to nan would pass
        return net
    bound = (1 - CLEARANCE) * schedule.norm_bound(units) ** 2
    budget = min(BRACE_COST * float(steps.ratios.max()), bound)
    return _net_of(with_braces(schedule, steps, budget), units)


def _net_of(steps: Steps, units: int) -> InterpolationNet:
    weights, bias = (  # zeros for idle units
        nn.functional.pad(part, (0, 0) * (part.dim() - 1) + (0, units - len(part)))
        for part in steps.units(clearance=CLEARANCE)
    )
    return InterpolationNet(weights, bias)
