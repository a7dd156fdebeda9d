"""Hessian eigenvalues of other libraries, behind one call each.

Every adapter takes a setting and gives back what was asked for with the number of products over the
data. A library is imported when its adapter is made, so a missing one is a line of the report.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn

import resid_theory as rt

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Found:
    """Eigenvalues, descending, and what they cost."""

    values: Tensor
    products: int
    claims: bool  # whether the library says that they converged


@dataclass(frozen=True)
class Case:
    """A net, its data and a name."""

    name: str
    net: nn.Module
    batches: Batches

    def operator(self, accumulate: str = "float32") -> rt.curvature.CurvatureOperator:
        """The Hessian of the mean cross-entropy."""
        return rt.curvature_operator(self.net, "cross_entropy", self.batches, accumulate=accumulate)


class Counted:
    """A scipy operator that counts its products."""

    def __init__(self, matvec: Callable[[np.ndarray], np.ndarray], size: int) -> None:
        self.products = 0

        def counted(vector: np.ndarray) -> np.ndarray:
            self.products += 1
            return matvec(vector)

        self.linear = LinearOperator((size, size), matvec=counted, dtype=np.float32)


def arpack(counted: Counted, k: int, setting: tuple[float, int]) -> Found:
    """scipy's eigsh with a tolerance and a number of vectors."""
    tolerance, vectors = setting
    start = np.random.default_rng(0).standard_normal(counted.linear.shape[0]).astype(np.float32)
    try:
        values = eigsh(
            counted.linear, k, which="LA", tol=tolerance, ncv=vectors, v0=start,
            return_eigenvectors=False,
        )  # fmt: skip
    except ArpackNoConvergence:
        return Found(values=torch.full((k,), float("nan")), products=counted.products, claims=False)
    found = torch.from_numpy(np.asarray(values, dtype=np.float64)).sort(descending=True).values
    return Found(values=found, products=counted.products, claims=True)


class PyHessian:
    """Power iteration with deflation, by magnitude; settings are (tolerance, most iterations)."""

    name = "pyhessian"
    settings = ((1e-3, 100), (1e-4, 300))
    own = (1e-3, 100)

    def __init__(self) -> None:
        self.module = importlib.import_module("pyhessian.hessian")

    def _made(self, case: Case) -> object:
        one = len(case.batches) == 1
        data = {"data": case.batches[0]} if one else {"dataloader": case.batches}
        return self.module.hessian(case.net, nn.CrossEntropyLoss(), cuda=False, **data)

    def eigenvalues(self, case: Case, k: int, setting: tuple[float, int]) -> Found:
        """The largest by magnitude: it has no other order."""
        torch.manual_seed(0)
        made = self._made(case)
        tolerance, most = setting
        with self._counting(made) as counts:
            values, _ = made.eigenvalues(maxIter=most, tol=tolerance, top_n=k)
        case.net.zero_grad(set_to_none=True)
        found = torch.tensor(values, dtype=torch.float64).sort(descending=True).values
        return Found(values=found, products=counts(), claims=True)

    def _counting(self, made: object) -> "_Counting":
        return _Counting(self.module, made)


class _Counting:
    """Counts the products of PyHessian while it is open."""

    def __init__(self, module: object, made: object) -> None:
        self.one = mock.patch.object(
            module, "hessian_vector_product", wraps=module.hessian_vector_product
        )
        self.many = mock.patch.object(
            made, "dataloader_hv_product", wraps=made.dataloader_hv_product
        )

    def __enter__(self) -> Callable[[], int]:
        spies = (self.one.start(), self.many.start())
        return lambda: sum(spy.call_count for spy in spies)

    def __exit__(self, *_: object) -> None:
        self.one.stop()
        self.many.stop()


class Eigenthings:
    """Lanczos of a fixed number of steps, which is its setting, with reorthogonalization."""

    name = "hessian_eigenthings"
    settings = tuple(range(6, 81))
    own = None  # it has no stopping rule: steps are doubled until it says converged

    def __init__(self) -> None:
        self.module = importlib.import_module("hessian_eigenthings")

    def _operator(self, case: Case) -> object:
        loss = importlib.import_module("hessian_eigenthings.loss_fns").supervised_loss
        operators = importlib.import_module("hessian_eigenthings.operators")
        return operators.HessianOperator(case.net, case.batches, loss(nn.CrossEntropyLoss()))

    def eigenvalues(self, case: Case, k: int, setting: int) -> Found:
        """The largest."""
        algorithms = importlib.import_module("hessian_eigenthings.algorithms")
        result = algorithms.lanczos(
            self._operator(case), k=k, max_iter=setting, tol=1e-3, reorthogonalize=True,
            which="LA", seed=0,
        )  # fmt: skip
        return Found(
            values=result.eigenvalues.double(),
            products=result.iterations,
            claims=bool(result.converged.all()),
        )


class Curvlinops:
    """A scipy operator under ARPACK; settings are (tolerance, vectors)."""

    name = "curvlinops"
    settings = ((1e-2, 11), (1e-2, 20), (1e-2, 30), (1e-3, 20))
    own = (1e-3, 20)  # scipy's own number of vectors

    def __init__(self) -> None:
        self.module = importlib.import_module("curvlinops")

    def _operator(self, case: Case) -> object:
        return self.module.HessianLinearOperator(
            case.net, nn.CrossEntropyLoss(), list(case.net.parameters()), case.batches,
            check_deterministic=False,
        )  # fmt: skip

    def eigenvalues(self, case: Case, k: int, setting: tuple[float, int]) -> Found:
        """The largest."""
        operator = self._operator(case)
        return arpack(Counted(operator.to_scipy().matvec, operator.shape[0]), k, setting)


RIVALS = {rival.name: rival for rival in (PyHessian, Eigenthings, Curvlinops)}


def importable(names: Sequence[str]) -> list[object]:
    """Adapters of the libraries that are there; the others are named with the reason."""
    found = []
    for name in names:
        try:
            found.append(RIVALS[name]())
        except ImportError as error:
            print(f"{name}: skipped, {type(error).__name__}: {error}")
    return found
