"""Theory and analysis of identity and shortcut networks: where does the identity enter the weights?

Names are imported when they are first used, so ``import resid_theory as rt`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resid_theory import curvature as curvature
    from resid_theory import data as data
    from resid_theory import plots as plots
    from resid_theory import theory as theory
    from resid_theory.curvature import hessian as hessian
    from resid_theory.curvature import hessian_cost as hessian_cost
    from resid_theory.curvature import hessian_spectrum as hessian_spectrum
    from resid_theory.data import load_whitened as load_whitened
    from resid_theory.moments import Moments as Moments
    from resid_theory.samples import Regression as Regression
    from resid_theory.shortcut import ShortcutNet as ShortcutNet
    from resid_theory.shortcut import draw_weights as draw_weights
    from resid_theory.shortcut import initialize as initialize
    from resid_theory.spectra import Spectrum as Spectrum

__version__ = "0.1.0"

_HOMES = {
    "Moments": "moments",
    "Regression": "samples",
    "ShortcutNet": "shortcut",
    "Spectrum": "spectra",
    "draw_weights": "shortcut",
    "hessian": "curvature",
    "hessian_cost": "curvature",
    "hessian_spectrum": "curvature",
    "initialize": "shortcut",
    "load_whitened": "data",
}
_ROOMS = ("curvature", "data", "plots", "theory")

__all__ = [
    "Moments",
    "Regression",
    "ShortcutNet",
    "Spectrum",
    "curvature",
    "data",
    "draw_weights",
    "hessian",
    "hessian_cost",
    "hessian_spectrum",
    "initialize",
    "load_whitened",
    "plots",
    "theory",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"resid_theory.{name}")
    if name in _HOMES:
        value = getattr(importlib.import_module(f"resid_theory.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'resid_theory' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
