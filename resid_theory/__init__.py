"""Theory and analysis of identity and shortcut networks: where does the identity enter the weights?

Names are imported when they are first used, so ``import resid_theory as rt`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resid_theory import curvature as curvature
    from resid_theory import data as data
    from resid_theory import descent as descent
    from resid_theory import plots as plots
    from resid_theory import stability as stability
    from resid_theory import sweep as sweep
    from resid_theory import theory as theory
    from resid_theory import training as training
    from resid_theory.curvature import CurvatureOperator as CurvatureOperator
    from resid_theory.curvature import SpectrumReport as SpectrumReport
    from resid_theory.curvature import curvature_callback as curvature_callback
    from resid_theory.curvature import curvature_operator as curvature_operator
    from resid_theory.curvature import eigenpairs as eigenpairs
    from resid_theory.curvature import frobenius_norm as frobenius_norm
    from resid_theory.curvature import hessian as hessian
    from resid_theory.curvature import hessian_cost as hessian_cost
    from resid_theory.curvature import hessian_spectrum as hessian_spectrum
    from resid_theory.curvature import spectral_density as spectral_density
    from resid_theory.curvature import spectral_estimates as spectral_estimates
    from resid_theory.curvature import spectrum as spectrum
    from resid_theory.curvature import trace as trace
    from resid_theory.data import load_whitened as load_whitened
    from resid_theory.densities import Density as Density
    from resid_theory.descent import gradient_descent as gradient_descent
    from resid_theory.equivalence import check_equivalence as check_equivalence
    from resid_theory.equivalence import fold as fold
    from resid_theory.equivalence import to_plain as to_plain
    from resid_theory.equivalence import to_residual as to_residual
    from resid_theory.estimates import Eigenpairs as Eigenpairs
    from resid_theory.estimates import Estimate as Estimate
    from resid_theory.exchange import load_dirac_file as load_dirac_file
    from resid_theory.exchange import save_dirac_file as save_dirac_file
    from resid_theory.identity import IdDecay as IdDecay
    from resid_theory.identity import id_mask as id_mask
    from resid_theory.images import Images as Images
    from resid_theory.images import load_image_folder as load_image_folder
    from resid_theory.images import load_images as load_images
    from resid_theory.moments import Moments as Moments
    from resid_theory.networks import diracnet as diracnet
    from resid_theory.networks import diracnet_imagenet as diracnet_imagenet
    from resid_theory.networks import full_net as full_net
    from resid_theory.networks import preresnet as preresnet
    from resid_theory.networks import resnet_imagenet as resnet_imagenet
    from resid_theory.networks import simplified_net as simplified_net
    from resid_theory.samples import Regression as Regression
    from resid_theory.shortcut import ShortcutNet as ShortcutNet
    from resid_theory.shortcut import draw_weights as draw_weights
    from resid_theory.shortcut import initialize as initialize
    from resid_theory.spectra import Spectrum as Spectrum
    from resid_theory.stability import Cushions as Cushions
    from resid_theory.stability import InterlayerCushions as InterlayerCushions
    from resid_theory.stability import block_cushions as block_cushions
    from resid_theory.stability import compare_cushions as compare_cushions
    from resid_theory.stability import dominant_flows as dominant_flows
    from resid_theory.stability import interlayer_cushions as interlayer_cushions
    from resid_theory.stability import layer_cushions as layer_cushions
    from resid_theory.sweep import SweepReport as SweepReport
    from resid_theory.sweep import load_results as load_results
    from resid_theory.sweep import run_sweep as run_sweep
    from resid_theory.training import Recipe as Recipe
    from resid_theory.training import Run as Run
    from resid_theory.training import build_net as build_net
    from resid_theory.training import evaluate as evaluate
    from resid_theory.training import load_checkpoint as load_checkpoint
    from resid_theory.training import resume as resume
    from resid_theory.training import save_checkpoint as save_checkpoint
    from resid_theory.training import train as train

__version__ = "0.1.0"

_HOMES = {
    "CurvatureOperator": "curvature",
    "Cushions": "stability",
    "Density": "densities",
    "Eigenpairs": "estimates",
    "Estimate": "estimates",
    "IdDecay": "identity",
    "Images": "images",
    "InterlayerCushions": "stability",
    "Moments": "moments",
    "Recipe": "training",
    "Regression": "samples",
    "Run": "training",
    "ShortcutNet": "shortcut",
    "Spectrum": "spectra",
    "SpectrumReport": "curvature",
    "SweepReport": "sweep",
    "block_cushions": "stability",
    "build_net": "training",
    "check_equivalence": "equivalence",
    "compare_cushions": "stability",
    "curvature_callback": "curvature",
    "curvature_operator": "curvature",
    "diracnet": "networks",
    "diracnet_imagenet": "networks",
    "dominant_flows": "stability",
    "draw_weights": "shortcut",
    "eigenpairs": "curvature",
    "evaluate": "training",
    "fold": "equivalence",
    "frobenius_norm": "curvature",
    "full_net": "networks",
    "gradient_descent": "descent",
    "hessian": "curvature",
    "hessian_cost": "curvature",
    "hessian_spectrum": "curvature",
    "id_mask": "identity",
    "initialize": "shortcut",
    "interlayer_cushions": "stability",
    "layer_cushions": "stability",
    "load_checkpoint": "training",
    "load_dirac_file": "exchange",
    "load_image_folder": "images",
    "load_images": "images",
    "load_results": "sweep",
    "load_whitened": "data",
    "preresnet": "networks",
    "resnet_imagenet": "networks",
    "resume": "training",
    "run_sweep": "sweep",
    "save_checkpoint": "training",
    "save_dirac_file": "exchange",
    "simplified_net": "networks",
    "spectral_density": "curvature",
    "spectral_estimates": "curvature",
    "spectrum": "curvature",
    "to_plain": "equivalence",
    "to_residual": "equivalence",
    "trace": "curvature",
    "train": "training",
}
_ROOMS = ("curvature", "data", "descent", "plots", "stability", "sweep", "theory", "training")

__all__ = [
    "CurvatureOperator",
    "Cushions",
    "Density",
    "Eigenpairs",
    "Estimate",
    "IdDecay",
    "Images",
    "InterlayerCushions",
    "Moments",
    "Recipe",
    "Regression",
    "Run",
    "ShortcutNet",
    "Spectrum",
    "SpectrumReport",
    "SweepReport",
    "block_cushions",
    "build_net",
    "check_equivalence",
    "compare_cushions",
    "curvature",
    "curvature_callback",
    "curvature_operator",
    "data",
    "descent",
    "diracnet",
    "diracnet_imagenet",
    "dominant_flows",
    "draw_weights",
    "eigenpairs",
    "evaluate",
    "fold",
    "frobenius_norm",
    "full_net",
    "gradient_descent",
    "hessian",
    "hessian_cost",
    "hessian_spectrum",
    "id_mask",
    "initialize",
    "interlayer_cushions",
    "layer_cushions",
    "load_checkpoint",
    "load_dirac_file",
    "load_image_folder",
    "load_images",
    "load_results",
    "load_whitened",
    "plots",
    "preresnet",
    "resnet_imagenet",
    "resume",
    "run_sweep",
    "save_checkpoint",
    "save_dirac_file",
    "simplified_net",
    "spectral_density",
    "spectral_estimates",
    "spectrum",
    "stability",
    "sweep",
    "theory",
    "to_plain",
    "to_residual",
    "trace",
    "train",
    "training",
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
