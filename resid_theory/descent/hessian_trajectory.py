"""Exact Hessians along a descent, and what is read off them at a given loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from resid_theory._check import check_choice
from resid_theory.curvature import hessian_spectrum
from resid_theory.data.moments import Moments
from resid_theory.descent.path import Descent
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.losses import Loss
from resid_theory.networks.shortcut import ShortcutNet
from resid_theory.theory import linear_hessian

__all__ = ["SpectraAlong", "at_loss", "spectra_along"]

_READINGS = (
    "condition_number_10",
    "gradient_norm",
    "index",
    "magnitude_percentile_10",
    "max_magnitude",
    "min_magnitude",
)
_LINEAR = ("index",)  # every other reading is positive: its logarithm is interpolated


@dataclass(frozen=True, kw_only=True, eq=False)
class SpectraAlong:
    """All eigenvalues of the Hessian at chosen epochs of one row of a descent.

    Attributes:
        epochs: Epochs, ascending, (c,).
        loss: Loss there, (c,).
        gradient_norm: Euclidean norm of the gradient there, (c,).
        spectra: Eigenvalues there.
    """

    epochs: np.ndarray[Any, Any]
    loss: np.ndarray[Any, Any]
    gradient_norm: np.ndarray[Any, Any]
    spectra: tuple[Spectrum, ...]

    def read(self, what: str) -> np.ndarray[Any, Any]:
        """One number of every spectrum.

        Args:
            what: ``"max_magnitude"``, ``"min_magnitude"``, ``"magnitude_percentile_10"``,
                ``"condition_number_10"``, ``"index"`` or ``"gradient_norm"``.

        Returns:
            (c,).

        Raises:
            ValueError: If the name is unknown.
        """
        if check_choice("what", what, _READINGS) == "gradient_norm":
            return self.gradient_norm
        if what in ("magnitude_percentile_10", "condition_number_10"):
            name = what.removesuffix("_10").replace("condition", "percentile_condition")
            return np.array([getattr(spectrum, name)(10.0) for spectrum in self.spectra])
        return np.array([getattr(spectrum, what) for spectrum in self.spectra])

    def at_loss(self, what: str, levels: Sequence[float]) -> np.ndarray[Any, Any]:
        """A reading where the loss first falls to given levels.

        The index is interpolated itself, the other readings by their logarithms; see
        :func:`at_loss`.

        Args:
            what: As in :meth:`read`.
            levels: Losses, in any order.

        Returns:
            One value a level; nan where the level is above the first loss or never reached.

        Raises:
            ValueError: If the name is unknown.
        """
        return at_loss(self.loss, self.read(what), levels, logarithmic=what not in _LINEAR)


def at_loss(
    loss: np.ndarray[Any, Any],
    values: np.ndarray[Any, Any],
    levels: Sequence[float],
    *,
    logarithmic: bool = True,
) -> np.ndarray[Any, Any]:
    """Values along a descent where the loss first falls to given levels.

    Between the two points around a crossing, the value or its logarithm is linear in the logarithm
    of the loss.

    Args:
        loss: Losses in the order of the epochs, (c,), above 0.
        values: What is read there, (c,).
        levels: Losses, in any order, above 0.
        logarithmic: Whether the logarithm of the values is interpolated.

    Returns:
        One value a level; nan where the level is above the first loss or never reached.

    Example:
        >>> at_loss(np.array([8.0, 2.0]), np.array([1.0, 100.0]), [8.0, 4.0, 1.0]).round(9).tolist()
        [1.0, 10.0, nan]
    """
    curve = np.log(values) if logarithmic else values
    found = np.array([_crossing(loss, curve, level) for level in levels])
    return np.exp(found) if logarithmic else found


def _crossing(loss: np.ndarray[Any, Any], curve: np.ndarray[Any, Any], level: float) -> float:
    below = np.flatnonzero(loss <= level)
    if len(below) == 0 or level > loss[0]:
        return float("nan")
    after = int(below[0])
    if after == 0:
        return float(curve[0])
    high, low = np.log(loss[after - 1]), np.log(loss[after])
    share = (high - np.log(level)) / (high - low)
    return float(curve[after - 1] + share * (curve[after] - curve[after - 1]))


def spectra_along(
    net: ShortcutNet,
    loss: str | Loss,
    data: Any,
    path: Descent,
    *,
    row: Sequence[int] = (),
) -> SpectraAlong:
    """Exact Hessian spectra at the kept epochs of one row of a descent.

    Args:
        net: The architecture of the descent; its own weights are not touched.
        loss: The loss of the descent.
        data: The data of the descent.
        path: A descent that kept weights, and recorded at the epochs it kept.
        row: Position of the row in the leading axes; () where there are none.

    Returns:
        A spectrum for each kept epoch before the row diverged.

    Raises:
        ValueError: If no weights were kept, the row does not exist, or a kept epoch is not on
            record.

    Source:
        Li et al., arXiv:1611.01186, Appendix B and Figures 5 and 6 (the Hessian at every epoch).

    Example:
        >>> data, net = rt.load_whitened("digits"), rt.ShortcutNet(10, 2, 2)
        >>> start = rt.networks.draw_weights(
        ...     "near_zero", (2, 2, 10, 10), generator=torch.Generator().manual_seed(0)
        ... )
        >>> path = rt.gradient_descent(
        ...     net, "square", data, weights=start, learning_rate=0.3, epochs=8, keep=[0, 8]
        ... )
        >>> spectra_along(net, "square", data, path).read("index").round(1).tolist()
        [0.5, 0.5]
    """
    if len(path.kept) == 0:
        raise ValueError("path: kept no weights, needs gradient_descent(..., keep=epochs)")
    where = tuple(row)
    if len(where) != path.diverged_at.dim():
        raise ValueError(
            f"row: got {where}, needs {path.diverged_at.dim()} positions for rows of shape "
            f"{tuple(path.diverged_at.shape)}"
        )
    unrecorded = sorted(set(path.kept.tolist()) - set(path.epochs.tolist()))
    if unrecorded:
        raise ValueError(f"path: kept epochs {unrecorded} are not on record, needs record_every=1")
    all_epochs: tuple[Any, ...] = (slice(None), *where)
    weights = path.kept_weights[all_epochs]
    alive = weights.flatten(1).isfinite().all(1)
    records = torch.searchsorted(path.epochs, path.kept[alive.cpu()])
    if net.is_linear and loss == "square":
        data = Moments.of(data)
    spectra = tuple(_spectrum(net, loss, data, point) for point in weights[alive])
    return SpectraAlong(
        epochs=path.kept[alive.cpu()].numpy(),
        loss=path.loss[all_epochs][records].cpu().numpy(),
        gradient_norm=path.gradient_norm[all_epochs][records].cpu().numpy(),
        spectra=spectra,
    )


def _spectrum(net: ShortcutNet, loss: str | Loss, data: Any, weights: torch.Tensor) -> Spectrum:
    copy = ShortcutNet(
        net.width,
        net.blocks,
        net.shortcut_depth,
        shortcut=net.shortcut,
        pre=net.pre,
        mid=net.mid,
        post=net.post,
        dtype=weights.dtype,
        device=weights.device,
    )
    assert isinstance(copy.weights, torch.nn.Parameter)
    with torch.no_grad():
        copy.weights.copy_(weights)
    if isinstance(data, Moments):
        return Spectrum.of(torch.linalg.eigvalsh(linear_hessian(copy, data)))
    return hessian_spectrum(copy, loss, data)
