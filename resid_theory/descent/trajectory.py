"""Exact Hessian spectra along a descent, and statistics at a given loss."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import as_tensor
from resid_theory.curvature import hessian_spectrum
from resid_theory.data import Data
from resid_theory.data.moments import Moments
from resid_theory.descent.path import Descent
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.losses import Loss, LossLike
from resid_theory.networks.shortcut import ShortcutNet
from resid_theory.runtime.result import Result
from resid_theory.theory import linear_hessian


@dataclass(frozen=True, kw_only=True, eq=False)
class HessianTrajectory(Result):
    """All eigenvalues of the Hessian at chosen epochs of one row of a descent.

    Attributes:
        epochs: Epochs, ascending, (c,), int64.
        loss: Loss at these epochs, (c,), float64.
        gradient_norm: Euclidean norm of the gradient, (c,), float64.
        spectra: The spectrum at each epoch.
    """

    epochs: Tensor
    loss: Tensor
    gradient_norm: Tensor
    spectra: tuple[Spectrum, ...]

    headline = "Hessian along a descent, P = {0.spectra[0].size}"
    tabulated = {
        "epoch": "epochs",
        "loss": "loss",
        "gradient_norm": "gradient_norm",
        "largest": lambda found: found.each(lambda spectrum: spectrum.largest),
        "smallest": lambda found: found.each(lambda spectrum: spectrum.smallest),
        "condition_number": lambda found: found.each(lambda spectrum: spectrum.condition_number),
        "index": lambda found: found.each(lambda spectrum: spectrum.index),
    }

    def each(self, statistic: Callable[[Spectrum], float]) -> Tensor:
        """A statistic of every spectrum.

        Args:
            statistic: Maps a spectrum to a number, such as ``lambda s: s.max_magnitude``.

        Returns:
            (c,), float64.
        """
        values = [statistic(spectrum) for spectrum in self.spectra]
        return torch.tensor(values, dtype=torch.float64)


def at_loss(loss: Any, values: Any, levels: Any, *, logarithmic: bool = True) -> Tensor:
    """Values along a descent where the loss first falls to given levels.

    Between the two points around a crossing, the value or its logarithm is linear in the logarithm
    of the loss.

    Args:
        loss: Losses in the order of the epochs, (c,), above 0.
        values: Values of a statistic there, (c,), for example a condition number.
        levels: Losses in any order, (k,), above 0.
        logarithmic: Whether to interpolate the logarithm of the values, which must be positive.

    Returns:
        One value for each level, (k,); nan where it is above the first loss or never reached.

    Example:
        >>> at_loss([8.0, 2.0], [1.0, 100.0], [8.0, 4.0, 1.0]).round(decimals=9).tolist()
        [1.0, 10.0, nan]
    """
    loss, values, levels = (
        as_tensor(name, given).to("cpu", torch.float64)
        for name, given in (("loss", loss), ("values", values), ("levels", levels))
    )
    curve = values.log() if logarithmic else values
    below = loss <= levels[:, None]
    after = below.to(torch.int8).argmax(1)  # the first one below
    before = after - 1
    high, low = loss[before].log(), loss[after].log()
    share = (high - levels.log()) / (high - low)
    between = curve[before] + share * (curve[after] - curve[before])
    found = torch.where(after == 0, curve[0], between)
    found[~below.any(1) | (levels > loss[0])] = torch.nan
    return found.exp() if logarithmic else found


def hessian_trajectory(
    net: ShortcutNet,
    loss: LossLike,
    data: Any,
    path: Descent,
    *,
    row: Sequence[int] = (),
) -> HessianTrajectory:
    """Exact Hessian spectra at the kept epochs of one row of a descent.

    Args:
        net: The architecture of the descent; its own weights are not changed.
        loss: The loss of the descent.
        data: The data of the descent.
        path: A descent that kept weights, and recorded at the epochs it kept.
        row: Position of the row in the leading axes; () without leading axes.

    Returns:
        A spectrum for each kept epoch before the row diverged.

    Raises:
        ValueError: If no weights were kept, the row does not exist, or a kept epoch is not on
            record.

    Source:
        Li et al., arXiv:1611.01186, Appendix B and Figures 5 and 6 (the Hessian at every epoch).

    Example:
        >>> data, net = rt.load_whitened("digits"), rt.ShortcutNet(10, 2, 2)
        >>> start = rt.networks.draw_weights("near_zero", (2, 2, 10, 10), generator=0)
        >>> path = rt.gradient_descent(
        ...     net, "square", data, weights=start, learning_rate=0.3, epochs=8, keep=[0, 8]
        ... )
        >>> found = hessian_trajectory(net, "square", data, path)
        >>> found.each(lambda spectrum: spectrum.index).round(decimals=1).tolist()
        [0.5, 0.5]
    """
    if len(path.kept) == 0:
        raise ValueError("path: kept no weights, needs gradient_descent(..., keep=epochs)")
    if len(row) != path.diverged_at.dim():
        raise ValueError(
            f"row: got {tuple(row)}, needs {path.diverged_at.dim()} positions for rows of shape "
            f"{tuple(path.diverged_at.shape)}"
        )
    unrecorded = sorted(set(path.kept.tolist()) - set(path.epochs.tolist()))
    if unrecorded:
        raise ValueError(f"path: kept epochs {unrecorded} are not on record, needs record_every=1")
    all_epochs: tuple[Any, ...] = (slice(None), *row)
    weights = path.kept_weights[all_epochs]
    alive = weights.flatten(1).isfinite().all(1)
    epochs = path.kept[alive.cpu()]
    records = torch.searchsorted(path.epochs, epochs)
    # Read once for all spectra.
    data = Moments.of(data) if net.is_linear and Loss.of(loss).identity else Data.of(data).held()
    return HessianTrajectory(
        epochs=epochs,
        loss=path.loss[all_epochs][records].cpu(),
        gradient_norm=path.gradient_norm[all_epochs][records].cpu(),
        spectra=tuple(_spectrum(net, loss, data, point) for point in weights[alive]),
    )


def _spectrum(net: ShortcutNet, loss: LossLike, data: Any, weights: Tensor) -> Spectrum:
    """Spectrum of a copy of the net with these weights."""
    copy = deepcopy(net).to(weights)
    with torch.no_grad():
        copy.get_parameter("weights").copy_(weights)
    if isinstance(data, Moments):
        return Spectrum.of(torch.linalg.eigvalsh(linear_hessian(copy, data)))
    return hessian_spectrum(copy, loss, data)
