"""Measured curvature, for any module and any loss."""

from resid_theory.curvature.callback import curvature_callback
from resid_theory.curvature.dense import HessianCost, hessian, hessian_cost, hessian_spectrum
from resid_theory.curvature.fisher_graphs import MATRICES
from resid_theory.curvature.kronecker_factors import kfac
from resid_theory.curvature.kronecker_operator import KroneckerOperator
from resid_theory.curvature.landscape import LossAlong, filter_directions, loss_along
from resid_theory.curvature.layer_table import LayerTable, layer_table
from resid_theory.curvature.mini_batches import BatchSpectra, batch_spectra
from resid_theory.curvature.operator import (
    CurvatureBlock,
    CurvatureOperator,
    curvature_operator,
)
from resid_theory.curvature.spectrum_of_net import spectrum
from resid_theory.curvature.zero_point_of_net import zero_point_of_net

__all__ = [
    "MATRICES",
    "BatchSpectra",
    "CurvatureBlock",
    "CurvatureOperator",
    "HessianCost",
    "KroneckerOperator",
    "LayerTable",
    "LossAlong",
    "batch_spectra",
    "curvature_callback",
    "curvature_operator",
    "filter_directions",
    "hessian",
    "hessian_cost",
    "hessian_spectrum",
    "kfac",
    "layer_table",
    "loss_along",
    "spectrum",
    "zero_point_of_net",
]
