"""Everything the theory says of one's own problem at zero weights, in one object."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from resid_theory._check import as_tensor, check_choice, check_int
from resid_theory.activations import Activation
from resid_theory.eigen.spectral_statistics import SpectralStatistics
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.losses import Loss
from resid_theory.theory.zero_weights.escape import escape_steps, escape_time, learning_rate_scale
from resid_theory.theory.zero_weights.origin import zero_point
from resid_theory.theory.zero_weights.prediction import ZeroPoint
from resid_theory.theory.zero_weights.toeplitz import BlockToeplitz

__all__ = ["ZeroPointReport", "zero_point_report"]

_DENSE = 3000  # parameters whose eigenvalues take seconds; beyond, n = 1 answers by its limits
_DENSE_EXACT = 8000  # where exact numbers are asked for, counting takes longer than this
_SHOWN = 12  # levels in print


@dataclass(frozen=True, kw_only=True, eq=False)
class ZeroPointReport:
    """The zero point of a problem and what follows from it.

    Attributes:
        point: M, the spectrum with multiplicities, condition numbers, index, verdict, bound.
        start: Size of the weights at the start, for the time of escape.
        stop: Size at which they count as escaped.
        exact: For n = 1: whether eigenvalues are counted at any depth, which is slow, or taken from
            the limit of great depth where a dense solver would be too slow.
    """

    point: ZeroPoint
    start: float = 0.01
    stop: float = 0.1
    exact: bool = False

    @property
    def escape_time(self) -> float:
        """Learning rate times steps from ``start`` to ``stop``; 0 for n = 1, which is not stuck."""
        if self.point.shortcut_depth == 1:
            return 0.0
        return escape_time(self.point, start=self.start, stop=self.stop)

    @property
    def escape_steps(self) -> float:
        """Steps from ``start`` to ``stop`` at ``learning_rate_scale``; inf where that is inf."""
        rate = self.learning_rate_scale
        if self.point.shortcut_depth == 1:
            return 0.0
        if math.isinf(rate):
            return math.inf
        return escape_steps(self.point, start=self.start, stop=self.stop, learning_rate=rate)

    @property
    def learning_rate_scale(self) -> float:
        """1 / max|λ| at zero; inf for n >= 3."""
        return learning_rate_scale(self.point)

    @property
    def singular_values(self) -> list[float]:
        """Those of M, descending."""
        values: list[float] = torch.linalg.svdvals(self.point.correlation).tolist()
        return values

    @property
    def is_dense(self) -> bool:
        """Whether n = 1 is answered by a dense solver."""
        return self.point.size <= (_DENSE_EXACT if self.exact else _DENSE)

    @property
    def method(self) -> str:
        """How the numbers of the spectrum are found."""
        if not isinstance(self.point.readings, BlockToeplitz):
            return "closed form"
        if self.is_dense:
            return "dense solver"
        if self.exact:
            return "inertia counts"
        return "limits of great depth, relative error O(1 / blocks); exact numbers take counts"

    @property
    def spectrum(self) -> Spectrum | None:
        """All eigenvalues with their multiplicities; None where they are not listed (n = 1)."""
        if isinstance(self.point.readings, BlockToeplitz) and not self.is_dense:
            return None
        return self.point.spectrum

    def summary(self) -> dict[str, Any]:
        """All numbers by name; JSON-ready but for inf and nan."""
        point, spectrum = self.point, self.spectrum
        bound = None if math.isinf(point.a_priori_bound) else point.a_priori_bound
        numbers: dict[str, Any] = {
            "method": self.method,
            "blocks": point.blocks,
            "shortcut_depth": point.shortcut_depth,
            "hidden": point.hidden,
            "verdict": point.verdict,
            "reason": point.reason,
            "order": point.order,
            "slope": point.slope,
            "a_priori_bound": bound,
            "learning_rate_scale": self.learning_rate_scale,
            "singular_values": self.singular_values,
        }
        if point.shortcut_depth > 1:
            numbers |= {
                "escape_from": self.start,
                "escape_to": self.stop,
                "escape_time": self.escape_time,
                "escape_steps": self.escape_steps,
            }
        if isinstance(point.readings, BlockToeplitz):
            numbers["growth_rate"] = point.growth_rate
        if spectrum is not None:
            numbers |= _read(spectrum)
        elif self.exact:
            numbers |= _read(point.readings)
        else:
            numbers |= _limits(point)
        return numbers

    def json(self) -> str:
        """The summary and the levels as JSON; inf and nan as strings, which ``float`` reads."""
        content = self.summary()
        if self.spectrum is not None and self.point.shortcut_depth > 1:
            content["levels"] = self.spectrum.levels.tolist()
            content["multiplicities"] = self.spectrum.multiplicities.tolist()
        return json.dumps(_strict(content), indent=2, ensure_ascii=False, allow_nan=False)

    def __str__(self) -> str:
        """The report for people."""
        point, found = self.point, self.summary()
        n, (d, q) = point.shortcut_depth, point.correlation.shape
        lines = [
            f"Zero weights, {point.blocks:,} blocks of {n} layers: {point.verdict}",
            f"  {point.reason}",
            f"M, {d} x {q}: singular values {_listed(found['singular_values'])}; "
            f"c = {point.slope:.4g}",
            f"Hessian, P = {point.size:,}, by {found['method']}: {self._levels()}",
            f"  max |λ| {found['max_magnitude']:.4g}, over the 10th percentile "
            f"{found['condition_number_10']:.4g}{self._ratios(found)}",
            f"Learning-rate scale 1 / max |λ|: {found['learning_rate_scale']:.4g}",
        ]
        if n > 1:
            lines.append(
                f"Escape from weights of {self.start:g} to {self.stop:g}: {self.escape_time:.4g} "
                f"(learning rate x steps); {self.escape_steps:.4g} steps at the scale"
            )
        return "\n".join(lines)

    def _levels(self) -> str:
        spectrum = self.spectrum
        if spectrum is None or self.point.shortcut_depth == 1:
            return "largest |λ| over blocks tends to " + f"{self.point.growth_rate:.4g}"
        pairs = zip(spectrum.levels.tolist(), spectrum.multiplicities.tolist(), strict=True)
        shown = [f"{level:.4g} x {count:,}" for level, count in pairs]
        more = len(shown) - _SHOWN
        half = _SHOWN // 2
        return ", ".join(shown if more <= 0 else [*shown[:half], "...", *shown[-half:]])

    def _ratios(self, found: Mapping[str, Any]) -> str:
        if "condition_number" not in found:
            return ""
        bound = found["a_priori_bound"]
        known = "" if bound is None else f" (a-priori bound {bound:.4g})"
        return (
            f", over the smallest {found['condition_number']:.4g}{known}, over the smallest "
            f"nonzero {found['condition_number_nonzero']:.4g}; index {found['index']:.4g}"
        )


def _read(readings: SpectralStatistics) -> dict[str, Any]:
    return {"max_magnitude": readings.max_magnitude, **readings.summary()}


def _limits(point: ZeroPoint) -> dict[str, Any]:
    """What is known of n = 1 without an eigenvalue."""
    assert isinstance(point.readings, BlockToeplitz)
    return {
        "parameters": point.size,
        "max_magnitude": point.growth_rate * point.blocks,
        "bulk_percentile_10": point.readings.bulk_percentile(10),
        "condition_number_10": point.readings.predicted_condition_number(10),
    }


def _listed(values: Sequence[float]) -> str:
    shown = [f"{value:.4g}" for value in values]
    return " ".join(shown if len(shown) <= _SHOWN else [*shown[:6], "...", *shown[-6:]])


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _strict(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_strict(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def zero_point_report(
    x: Any,
    y: Any,
    *,
    loss: str | Loss = "square",
    activations: str | Mapping[str, str | Activation] | None = None,
    n: int = 2,
    blocks: int = 1,
    widths: int | None = None,
    bias: bool = False,
    input_map: Any = None,
    output_map: Any = None,
    start: float = 0.01,
    stop: float = 0.1,
    exact: bool = False,
) -> ZeroPointReport:
    """What the theory says of one's own problem, before anything is trained.

    Args:
        x: Inputs, (m, q).
        y: Targets, (m, k), or class labels (m,), which become one-hot.
        loss: ``"square"``, ``"cross_entropy"``, or a callable (output, target) -> mean over
            samples.
        activations: By position, e.g. ``{"pre": "relu", "mid": "relu"}``; a single name stands for
            ``mid``.
        n: Weight matrices under one shortcut.
        blocks: Number of blocks.
        widths: Width inside a block; that of the trunk by default, which is set by the data or the
            maps.
        bias: Whether the first matrix of a block has a bias.
        input_map: Fixed map in front of the trunk, (trunk width, q); needed where x and y differ in
            width (or project x by :func:`resid_theory.data.whiten` first).
        output_map: Fixed map behind it, (k, trunk width).
        start: Size of the weights at the start.
        stop: Size at which they count as escaped.
        exact: For n = 1 at great depth: count eigenvalues instead of taking the limits; slow.

    Returns:
        The report: ``print`` it, read ``summary()`` or ``json()``, draw it with
        :func:`resid_theory.plots.zero_point`.

    Raises:
        ValueError: If data, counts or names do not fit; as for :func:`zero_point`.

    Source:
        Li et al., arXiv:1611.01186, Theorem 2, and what is derived from it here.

    Example:
        >>> data = rt.load_whitened("digits")
        >>> report = zero_point_report(data.x, data.y, activations="relu", n=2, blocks=50)
        >>> report.point.verdict, report.point.index
        ('strict saddle', 0.5)
        >>> print(str(report).splitlines()[-1])
        Escape from weights of 0.01 to 0.1: 3.662 (learning rate x steps); 3.322 steps at the scale
    """
    names = {"mid": activations} if isinstance(activations, str) else dict(activations or {})
    for name in names:
        check_choice("activations", name, ("pre", "mid", "post"))
    point = zero_point(
        (x, _targets(y)),
        blocks=blocks,
        shortcut_depth=n,
        loss=loss,
        hidden=widths,
        bias=bias,
        input_map=input_map,
        output_map=output_map,
        **names,
    )
    report = ZeroPointReport(point=point, start=start, stop=stop, exact=exact)
    if n > 1:
        escape_time(point, start=start, stop=stop)  # an unusable size is an error here, not later
    return report


def _targets(y: Any) -> torch.Tensor:
    targets = as_tensor("y", y)
    if targets.dim() != 1 or targets.is_floating_point():
        return targets
    check_int("y", int(targets.min()), 0)
    return torch.nn.functional.one_hot(targets.long()).to(torch.float64)
