"""Linear systems of symmetric operators, solved by products."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resid_theory._check import as_tensor, check_finite, check_int, check_positive
from resid_theory.eigen.products import MatrixProducts, check_square
from resid_theory.runtime.result import Result


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution(Result):
    """Solutions x of (A + damping I) x = v, and how well they are known.

    Attributes:
        values: x, (P,) or (P, b), float64.
        residuals: |v - (A + damping I) x| / |v| of each, computed by one more product.
        error_bounds: Bound of |x - x*| of each: the residual's length, and what the error of the
            products makes of x, over the smallest eigenvalue; inf where no bound of that is known.
        converged: Whether every residual is within the tolerance.
        method: ``cg`` or ``minres``.
        products: Products with one vector in all.
    """

    values: Tensor
    residuals: Tensor
    error_bounds: Tensor
    converged: bool
    method: str
    products: int

    tabulated = {
        "residual": lambda found: found.residuals.reshape(-1),
        "error_bound": lambda found: found.error_bounds.reshape(-1),
    }

    def __str__(self) -> str:
        """The title alone."""
        return self.title

    @property
    def title(self) -> str:
        """The worst of them."""
        state = "converged" if self.converged else "not converged"
        bound = float(self.error_bounds.max())
        return (
            f"{self.method}: residual {float(self.residuals.max()):.2g}, {state}, "
            f"error {'unknown' if math.isinf(bound) else f'at most {bound:.2g}'}, "
            f"{self.products} products"
        )


def check_system(A: Any, vectors: Any, damping: Any, tolerance: Any) -> Tensor:
    """The right sides of systems, (P,) or (P, b), float64; refuse what cannot be solved for."""
    size = A.shape[0]
    given = check_finite("V", as_tensor("V", vectors)).detach().to(A.device, torch.float64)
    if given.dim() not in (1, 2) or len(given) != size or not given.numel():
        raise ValueError(f"V: got shape {tuple(given.shape)}, needs ({size},) or ({size}, b)")
    if not isinstance(damping, Real) or not math.isfinite(damping):
        raise ValueError(f"damping: got {damping!r}, needs a finite number")
    check_positive("tolerance", tolerance)
    return given


def solve(
    A: MatrixProducts,
    vectors: Any,
    *,
    damping: float,
    tolerance: float,
    max_products: int,
) -> Solution:
    """Solve (A + damping I) x = v, as :meth:`LinearOperator.solve` says."""
    from scipy.sparse import linalg  # a third of a second of import

    size = check_square(A)
    given = check_system(A, vectors, damping, tolerance)
    limit = check_int("max_products", max_products)
    lowest, spent = A.lowest + damping, 0

    def product(x: np.ndarray) -> np.ndarray:
        nonlocal spent
        spent += 1
        x = x.reshape(size)
        return (A @ torch.from_numpy(x)).cpu().numpy() + damping * x

    operator = linalg.LinearOperator((size, size), matvec=product, dtype=np.dtype(np.float64))
    method = "cg" if lowest > 0 else "minres"
    solver = getattr(linalg, method)
    solutions, residuals, lengths = [], [], []
    columns = given.reshape(size, -1).mT.cpu().numpy()
    for v in columns:
        length = float(np.linalg.norm(v))
        x, left = np.zeros(size), v
        remaining, goal, far = limit // len(columns), tolerance * length, length
        share = 0.5
        while far > goal and remaining > 1 and share > 1e-4:
            # The solvers' own residuals drift from the true one: what is left is solved for again.
            before = spent
            aim = max(share * goal / far, 1e-14)
            step, _ = solver(operator, left, rtol=aim, maxiter=remaining - 1)
            nearer = v - product(x + step)
            remaining -= spent - before
            distance = float(np.linalg.norm(nearer))
            if not distance < 0.9 * far:
                # MINRES measures by |A| |x|, so that a loose aim may move nothing; otherwise it is
                # rounding, or a singular matrix whose range v is not in.
                share /= 10
            if distance < far:
                x, left, far = x + step, nearer, distance
        solutions.append(torch.from_numpy(x))
        residuals.append(far / length if length else 0.0)
        lengths.append(far)
    values = torch.stack(solutions, dim=1)
    if A.error is not None:  # |E x| is missing in the residual
        lengths = [
            r + A.error.spectral * float(x.norm()) for r, x in zip(lengths, values.mT, strict=True)
        ]
    relative = torch.tensor(residuals, dtype=torch.float64)
    inverse = 1 / lowest if lowest > 0 else math.inf
    bounds = torch.tensor([r * inverse if r else 0.0 for r in lengths], dtype=torch.float64)
    return Solution(
        values=values.to(A.device).view(given.shape),
        residuals=relative.view(given.shape[1:]),
        error_bounds=bounds.view(given.shape[1:]),
        converged=bool((relative <= tolerance).all()),
        method=method,
        products=spent,
    )
