"""Error of products in a net's own precision, measured against a copy of the net in float64."""

from dataclasses import replace

import torch
from torch import Tensor

from resid_theory.curvature.empirical_risk import EmpiricalRisk
from resid_theory.curvature.matvec_graphs import MatvecGraph
from resid_theory.data import Batch
from resid_theory.data.batch import Place
from resid_theory.eigen.matrix_error import MatrixError
from resid_theory.eigen.products import probe_vectors

NOT_SYMMETRIC = (
    "as those of a twice differentiable loss are beyond round-off; the usual causes are a gradient "
    "written by hand, an operation that torch differentiates correctly only once, and outputs so "
    "certain, with a loss near zero, that their derivatives are nothing but round-off"
)
ZERO = (
    "second derivatives of the first samples are zeros but for the round-off of their loss, as in "
    "biases that a norm or a softmax takes away"
)
_LEAST, _MOST = 2, 16  # samples that are compared; more where their graph is small
_SHARE = 48  # one sample in 48 costs as much as half a product
# The samples compared are few, and the vectors four. Over fully connected and convolutional nets
# at initialization and at minima, in float32 and bfloat16, the largest shift of an eigenvalue was
# at most 1.8 times what they showed.
_SAFETY = 3.0


def measured_error(risk: EmpiricalRisk, batch: Batch, samples: int, few: int) -> MatrixError | None:
    """Difference from the matrix of the same weights in float64; None where these are float64."""
    # The epsilon of the precision does not bound it: at a minimum of the cross-entropy, where
    # 1 - p cancels, a float32 Hessian is off by a thousandth, a bfloat16 one by half.
    if not risk.is_low:
        return None
    count = max(min(samples // _SHARE, _MOST), few, _LEAST)
    if risk.alone:
        part, step = batch.spread(_MOST), 1
    else:
        part = batch.spread(count) if risk.splits else batch
        step = part.size
    own = [risk.graph(part, start, step) for start in range(0, part.size, step)]
    size = sum(p.numel() for p in risk.parameters)
    vector = probe_vectors(size).to(risk.device)
    exact, usual = None, 0.0
    try:
        wide = risk.in_float64(batch)
        content = in_float64(part, wide)
        exact = [wide.graph(content, start, step) for start in range(0, part.size, step)]
    except Exception:  # a net that cannot be copied, or with steps that take one dtype only
        eps = max(torch.finfo(p.dtype).eps for p in risk.net.parameters())
        usual = eps * (10 + min(size, 10_000) ** 0.5)
    errors, trace, worst = [], 0.0, vector
    # A random vector, twice towards the largest eigenvalues, and where the first one is most wrong.
    for step in range(4):
        vector = vector / vector.norm()
        found = _product(own, vector)
        right = found if exact is None else _product(exact, vector)
        wrong = usual * found if exact is None else found - right
        errors.append(float(wrong.norm()))
        if step == 0:
            worst = wrong
            if exact is not None:
                trace = size * float(vector @ wrong)
        vector = right if step < 2 else worst
        if not bool(vector.any()):
            break
    spectral = max(errors)
    frobenius = max(spectral, size**0.5 * errors[0])
    # The trace as one random vector shows it has a variance of about 2 |E|².
    error = MatrixError(
        spectral=spectral, frobenius=frobenius, trace=abs(trace) + 2**0.5 * frobenius
    )
    # Of a sum over all samples, these are a part.
    return error.scaled(_SAFETY * (samples / part.size if risk.sums else 1.0))


def asymmetry(graph: MatvecGraph, vectors: Tensor, products: Tensor) -> float:
    """Largest |u A v - v A u| over some vectors, as rows; 0 if it is within round-off."""
    forms = vectors @ products.mT
    gap = float((forms - forms.mT).max())
    norms = vectors.norm(dim=1) * products.norm(dim=1)
    # Either side is of the order of the matrix's Frobenius norm, as this scale is. Round-off stays
    # far below the fourth root of the precision, a wrong derivative far above.
    scale = 2 * float(norms.max()) / vectors.shape[1] ** 0.5
    return gap if gap > torch.finfo(graph.parameters[0].dtype).eps ** 0.25 * scale else 0.0


def symmetric_in_float64(risk: EmpiricalRisk, batch: Batch, count: int, vectors: Tensor) -> bool:
    """Test whether a float64 copy of the net has symmetric products; False without a copy."""
    if not risk.is_low:
        return False
    try:
        wide = risk.in_float64(batch)
        graph = wide.graph(in_float64(batch, wide), 0, count)
        products = graph.product(vectors)
    except Exception:  # a net that cannot be copied, or with steps that take one dtype only
        return False
    return asymmetry(graph, vectors, products) == 0.0


def in_float64(batch: Batch, risk: EmpiricalRisk) -> Batch:
    """A batch for a net in float64."""
    return replace(batch, content=batch.placed, place=Place.of(risk.net))


def _product(graphs: list[MatvecGraph], vector: Tensor) -> Tensor:
    """The mean of products with a vector, which is scaled to entries up to one."""
    scale = vector.abs().max()
    given = (vector / scale)[None]
    return scale * torch.cat([graph.product(given) for graph in graphs]).mean(0)
