"""Products for a given accuracy: block Lanczos against ARPACK on spectra like those of Hessians.

    python -m benchmarks.lanczos

Counts of products do not depend on the machine. ARPACK's tolerance is on the residual and its
accuracy is not stated, so it is given the loosest tolerance of a grid, and the smallest number of
vectors of another, at which every eigenvalue is right to the same accuracy: its best result for a
user who knows the answer.
"""

import argparse

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

import resid_theory as rt

ACCURACY = 1e-3


def outliers_and_bulk(size: int, outliers: list[float], seed: int = 0) -> torch.Tensor:
    """Few large eigenvalues, a bulk whose density has a spike at zero, some of it negative."""
    generator = torch.Generator().manual_seed(seed)
    bulk = torch.randn(size, generator=generator, dtype=torch.float64)
    bulk = 0.3 * bulk * torch.rand(size, generator=generator, dtype=torch.float64) ** 3
    bulk[: len(outliers)] = torch.tensor(outliers, dtype=torch.float64)
    return bulk


class Diagonal:
    """A diagonal operator: Lanczos from a random vector depends on the eigenvalues alone."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values, self.shape = values, (len(values), len(values))
        self.dtype, self.device, self.products = values.dtype, values.device, 0

    def __matmul__(self, vectors: torch.Tensor) -> torch.Tensor:
        self.products += vectors.shape[1]
        return self.values[:, None] * vectors


def ours(values: torch.Tensor, k: int, verify: bool) -> tuple[int, float]:
    """Products and the largest relative error."""
    operator = Diagonal(values)
    found = rt.eigenpairs(operator, k, tolerance=ACCURACY, verify=verify)
    return operator.products, error(found.values, values)


def error(found: torch.Tensor, values: torch.Tensor) -> float:
    """Largest relative error of the top eigenvalues."""
    exact = values.sort(descending=True).values[: len(found)]
    return float(((found - exact) / exact).abs().max())


def arpack(values: torch.Tensor, k: int) -> tuple[int, float, str]:
    """The fewest products at which ARPACK is accurate, over its tolerance and its vectors."""
    best = (10**9, float("nan"), "never")
    start = torch.randn(len(values), generator=torch.Generator().manual_seed(0)).double().numpy()
    for vectors in (2 * k + 1, 4 * k, 6 * k, 8 * k, 12 * k):
        for tolerance in (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4):
            operator = Diagonal(values)

            def product(x: np.ndarray, operator: Diagonal = operator) -> np.ndarray:
                return (operator @ torch.from_numpy(x.reshape(-1, 1).copy())).numpy()

            linear = LinearOperator(operator.shape, matvec=product, dtype=np.float64)
            try:
                found = eigsh(
                    linear,
                    k,
                    which="LA",
                    tol=tolerance,
                    ncv=vectors,
                    v0=start,
                    return_eigenvectors=False,
                )
            except ArpackNoConvergence:
                continue
            accuracy = error(torch.from_numpy(found).sort(descending=True).values, values)
            if accuracy <= ACCURACY and operator.products < best[0]:
                best = (operator.products, accuracy, f"tol={tolerance:g}, ncv={vectors}")
    return best


def products() -> None:
    """The table of products."""
    cases = {
        "5 outliers, far": [30.0, 20.0, 12.0, 10.0, 8.0],
        "9 outliers, crowding": [30.0, 20.0, 12.0, 10.0, 8.0, 7.0, 6.5, 5.5, 5.0],
        "5 near the bulk": [3.0, 2.5, 2.2, 2.0, 1.8],
        "no outlier": [],
        "top three times": [10.0, 10.0, 10.0, 6.0, 4.0],
    }
    print(f"top 5, P = 20,000, every eigenvalue to {ACCURACY:g}: products with one vector")
    for name, outliers in cases.items():
        values = outliers_and_bulk(20_000, outliers)
        first, first_error = ours(values, 5, False)
        checked, checked_error = ours(values, 5, True)
        theirs, their_error, how = arpack(values, 5)
        print(
            f"  {name:22} first run {first:4d} (error {first_error:.1e}), "
            f"verified {checked:4d} ({checked_error:.1e}), "
            f"ARPACK {theirs:4d} ({their_error:.1e}; {how})"
        )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    products()
