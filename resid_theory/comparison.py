"""One net at initialization, measured beside its prediction; what the command line prints.

Torch is imported inside the functions, so that ``--help`` need not wait for it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resid_theory import Regression, ShortcutNet, Spectrum
    from resid_theory.readings import Readings
    from resid_theory.theory import ZeroPoint

__all__ = ["Run", "Setup", "bound_of", "measure", "numbers"]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A net, its start and its data, by the names of the options."""

    data: str = "digits"
    components: int = 10
    blocks: int = 4
    shortcut_depth: int = 2
    plain: bool = False
    hidden: int | None = None
    bias: bool = False
    pre: str | None = None
    mid: str | None = None
    post: str | None = None
    init: str = "near_zero"
    scale: float = 0.01
    loss: str = "square"

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Setup":
        """The setup that a verb's options describe; options of other meaning are left out."""
        return cls(**{f.name: options[f.name] for f in fields(cls) if f.name in options})

    def net(self, seed: int) -> "ShortcutNet":
        """The net with weights drawn from a seed."""
        import torch

        import resid_theory as rt

        net = rt.ShortcutNet(
            self.components,
            self.blocks,
            self.shortcut_depth,
            shortcut=not self.plain,
            hidden=self.hidden,
            bias=self.bias,
            pre=self.pre,
            mid=self.mid,
            post=self.post,
        )
        generator = torch.Generator().manual_seed(seed)
        return rt.initialize(net, self.init, generator=generator, scale=self.scale)

    def load(self, *, progress: bool) -> "Regression":
        """The data, names and widths checked first: a download should not precede an error."""
        import resid_theory as rt
        from resid_theory._check import choose
        from resid_theory.losses import LOSSES
        from resid_theory.shortcut import INITIALIZATIONS

        own = self.data.endswith(".npz")
        own or choose("data", self.data, ["digits", "mnist"])
        choose("init", self.init, INITIALIZATIONS)
        choose("loss", self.loss, list(LOSSES))
        replace(self, blocks=min(self.blocks, 1)).net(0)
        if own:
            data = _own_data(self.data, self.components)
        else:
            data = rt.load_whitened(self.data, self.components, progress=progress)
        if data.y.shape[1] != self.components:
            raise ValueError(
                f"components: got {self.components}, needs {data.y.shape[1]}: the net has as many "
                f"outputs as inputs, {self.data} has {data.y.shape[1]} targets"
            )
        return data

    def zero_point(self, data: Any, **keywords: Any) -> "ZeroPoint":
        """The prediction at zero weights."""
        import resid_theory as rt

        return rt.theory.zero_point(
            data,
            blocks=self.blocks,
            shortcut_depth=self.shortcut_depth,
            loss=self.loss,
            hidden=self.hidden,
            bias=self.bias,
            pre=self.pre,
            mid=self.mid,
            post=self.post,
            **keywords,
        )


def _own_data(path: str, components: int) -> "Regression":
    """Arrays x (m, ...) and y, labels (m,) or targets (m, k), of a file; x whitened."""
    import resid_theory as rt
    from resid_theory._check import as_tensor
    from resid_theory.data import one_hot, whiten
    from resid_theory.store import read_arrays

    try:
        arrays = read_arrays(path)
    except FileNotFoundError:
        raise ValueError(f"data: there is no file {path}; needs one with arrays x and y") from None
    except ValueError as error:
        raise ValueError(f"data: {error}") from error
    if not {"x", "y"} <= set(arrays):
        raise ValueError(f"data: {path} has arrays {sorted(arrays)}, needs x and y")
    x, y = as_tensor("data x", arrays["x"]), as_tensor("data y", arrays["y"])
    targets = one_hot(y, int(y.max()) + 1) if y.dim() == 1 else y.double()
    whitened, _ = whiten(x.flatten(1), components)
    return rt.Regression(whitened, targets)


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One net measured beside its prediction."""

    setup: Setup
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


def bound_of(point: "ZeroPoint") -> float | None:
    """The a-priori bound on the condition number, None where there is none."""
    return None if math.isinf(point.a_priori_bound) else point.a_priori_bound


def numbers(readings: "Readings") -> dict[str, Any]:
    """What a report says of a spectrum, by name."""
    return {"max_magnitude": readings.max_magnitude, **readings.summary()}


def measure(setup: Setup, data: "Regression", seed: int, *, progress: bool = False) -> Run:
    """Measure the spectrum of a net with drawn weights and predict it where theory reaches.

    Args:
        setup: The net, its start and its loss.
        data: The data, as ``setup.load`` gives them.
        seed: Of the weights.
        progress: Whether to show a progress bar on standard error.

    Returns:
        Both spectra.
    """
    import resid_theory as rt

    net = setup.net(seed)
    measured = rt.hessian_spectrum(net, setup.loss, data, progress=progress)
    try:
        point, note = _predict(setup, net, data)
        predicted = None if point is None else point.spectrum
    except ValueError as error:  # the net is fine, but theory does not reach it
        point, predicted, note = None, None, f"No prediction: {error}."
    bound = None if point is None else bound_of(point)
    return Run(
        setup=setup, seed=seed, measured=measured, predicted=predicted, note=note, bound=bound
    )


def _predict(
    setup: Setup, net: "ShortcutNet", data: "Regression"
) -> "tuple[ZeroPoint | None, str]":
    """The closed form at hand for a net's initial weights, and what it rests on."""
    import resid_theory as rt

    if not setup.plain and setup.init in ("zero", "near_zero"):
        along = {"kink": net} if setup.init == "near_zero" and _has_kinks(setup) else {}
        point = setup.zero_point(data, **along)
        where = "in the limit along the drawn weights" if along else "at zero weights"
        return point, f"Predicted: the Hessian {where}; {point.verdict}: {point.reason}."
    square = setup.hidden in (None, setup.components)
    if setup.plain and setup.init == "orthogonal" and net.is_linear and square:
        if setup.loss == "square":
            moments = rt.theory.rotated_moments(net.layers(), data)
            point = rt.theory.zero_point(moments, blocks=net.depth, shortcut_depth=1)
            return point, "Predicted: the 1-shortcut net at zero on rotated targets; exact."
    return None, (
        "No prediction: theory covers zero and near_zero with shortcuts, and orthogonal plain "
        "linear nets with the square loss."
    )


def _has_kinks(setup: Setup) -> bool:
    from resid_theory.activations import activation, at_zero

    inside = (activation(name, getattr(setup, name)) for name in ("mid", "post"))
    return any(at_zero(function).has_kink for function in inside)
