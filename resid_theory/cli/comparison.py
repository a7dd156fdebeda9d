"""One net at initialization, measured beside its prediction; what the command line prints.

Torch is imported inside the functions, so that ``--help`` need not wait for it.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resid_theory import Regression, ShortcutNet, Spectrum
    from resid_theory.eigen.spectral_statistics import SpectralStatistics
    from resid_theory.sweep.setup import Setup
    from resid_theory.theory import ZeroPoint


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictionCheck:
    """One net measured beside its prediction."""

    setup: "Setup"
    seed: int
    measured: "Spectrum"
    predicted: "Spectrum | None"
    note: str
    bound: float | None

    @property
    def distance(self) -> float | None:
        """Relative distance of the two spectra, where there are two."""
        return None if self.predicted is None else self.measured.distance(self.predicted)

    @property
    def layers(self) -> int:
        """Weight layers of the net."""
        return self.setup.blocks * self.setup.shortcut_depth

    def content(self) -> dict[str, Any]:
        """The run as it is stored."""
        predicted = None if self.predicted is None else numbers(self.predicted)
        return {
            "seed": self.seed,
            "blocks": self.setup.blocks,
            "layers": self.layers,
            "a_priori_bound": self.bound,
            "measured": numbers(self.measured),
            "predicted": predicted,
            "distance": self.distance,
        }


def numbers(readings: "SpectralStatistics") -> dict[str, Any]:
    """Statistics of a spectrum that a report contains, by name."""
    return {"max_magnitude": readings.max_magnitude, **readings.summary()}


def measure(setup: "Setup", data: "Regression", seed: int, *, progress: bool) -> PredictionCheck:
    """Measure the spectrum of a net with drawn weights and predict it where theory reaches."""
    import resid_theory as rt

    net = setup.net(seed)
    measured = rt.hessian_spectrum(net, setup.loss, data, progress=progress)
    try:
        point, note = _predict(setup, net, data)
        predicted = None if point is None else point.spectrum
    except ValueError as error:  # the net is fine, but theory does not reach it
        point, predicted, note = None, None, f"No prediction: {error}."
    bound = None if point is None or math.isinf(point.a_priori_bound) else point.a_priori_bound
    return PredictionCheck(
        setup=setup, seed=seed, measured=measured, predicted=predicted, note=note, bound=bound
    )


def _predict(
    setup: "Setup", net: "ShortcutNet", data: "Regression"
) -> "tuple[ZeroPoint | None, str]":
    """The closed form at hand for a net's initial weights, and what it rests on."""
    import torch

    import resid_theory as rt
    from resid_theory.activations import activation, at_zero

    if not setup.plain and setup.init in ("zero", "near_zero"):
        inside = (activation(name, getattr(setup, name)) for name in ("mid", "post"))
        kinks = any(at_zero(function).has_kink for function in inside)
        along = {"kink": net} if setup.init == "near_zero" and kinks else {}
        point = setup.zero_point(data, **along)
        where = "in the limit along the drawn weights" if along else "at zero weights"
        words = f"Predicted: the Hessian {where}; {point.verdict}: {point.reason}."
        return point, "\n".join([words, *point.remarks()])
    square = setup.hidden in (None, setup.components)
    if setup.plain and setup.init == "orthogonal" and net.is_linear and square:
        with torch.no_grad():
            product = net(torch.eye(net.width).to(net.get_parameter("weights"))).mT
        point = rt.theory.zero_point(
            data, loss=setup.loss, blocks=net.depth, shortcut_depth=1, output_map=product
        )
        words = "the 1-shortcut net at zero, followed by the product of the layers; exact."
        return point, f"Predicted: {words}"
    return None, (
        "No prediction: theory covers zero and near_zero with shortcuts, and orthogonal plain "
        "linear nets."
    )
