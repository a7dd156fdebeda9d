"""Block-diagonal matrices of Kronecker products, as K-FAC makes them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory.curvature.parameter_selection import select_parameters
from resid_theory.eigen.diagonal import Diagonal
from resid_theory.eigen.linear_operator import LinearOperator, WrappedOperator
from resid_theory.eigen.solve import Solution, check_system
from resid_theory.eigen.spectrum import Spectrum


@dataclass(frozen=True, kw_only=True, eq=False)
class KroneckerBlock:
    """The block ``G ⊗ A`` of a layer's weight and bias, side by side as (out, in + 1).

    Attributes:
        names: Weight and bias, or one of them.
        columns: Numbers of columns of A that belong to each.
        A: Second moment of the layer's inputs, with a one for the bias.
        G: Second moment of the gradients at its outputs.
    """

    names: tuple[str, ...]
    columns: tuple[int, ...]
    A: Tensor
    G: Tensor

    @cached_property
    def eigen(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Eigenvalues, those below zero are rounding, and eigenvectors of G and of A."""
        (g, u), (a, v) = (torch.linalg.eigh(factor) for factor in (self.G, self.A))
        return (g.clamp_min(0), u), (a.clamp_min(0), v)

    def restricted(self, names: Sequence[str]) -> "KroneckerBlock":
        """The block of some of its parameters."""
        parts = zip(self.names, self.columns, torch.arange(len(self.A)).split(self.columns),
                    strict=True)  # fmt: skip
        kept = [part for part in parts if part[0] in names]
        places = torch.cat([place for *_, place in kept]).to(self.A.device)
        return replace(
            self, names=tuple(name for name, *_ in kept), columns=tuple(n for _, n, _ in kept),
            A=self.A[places][:, places],
        )  # fmt: skip


class KroneckerOperator(LinearOperator):
    """A block-diagonal matrix with one Kronecker product for each layer; see `kfac`.

    Attributes:
        title: The matrix that it stands for.
        blocks: The layers' factors.
        not_covered: Reason for which a parameter has no rows, by name.
    """

    lowest = 0.0

    def __init__(
        self,
        blocks: Sequence[KroneckerBlock],
        parameters: Mapping[str, Tensor],
        net: nn.Module,
        *,
        title: str,
        not_covered: Mapping[str, str],
    ) -> None:
        covered = {name for block in blocks for name in block.names}
        self.blocks, self.title, self.not_covered = tuple(blocks), title, dict(not_covered)
        self._parameters = {name: p for name, p in parameters.items() if name in covered}
        self._net = net
        shapes = {name: p.shape for name, p in self._parameters.items()}
        sizes = [shape.numel() for shape in shapes.values()]
        super().__init__(
            (sum(sizes), sum(sizes)), torch.float64, blocks[0].A.device, row_shapes=shapes,
            column_shapes=shapes,
        )  # fmt: skip
        ends = torch.tensor(sizes).cumsum(0).tolist()
        spans = (slice(end - size, end) for size, end in zip(sizes, ends, strict=True))
        self._spans = dict(zip(self._parameters, spans, strict=True))

    @property
    def T(self) -> "KroneckerOperator":
        """The matrix itself."""
        return self

    def _apply(self, vectors: Tensor, act: Callable[[KroneckerBlock, Tensor], Tensor]) -> Tensor:
        """Act on each layer's vectors, (b, out, in + 1)."""
        total = torch.zeros_like(vectors, dtype=torch.float64)
        for block in self.blocks:
            count, rows = vectors.shape[1], len(block.G)
            parts = [vectors[self._spans[name]].double().mT for name in block.names]
            joined = torch.cat([part.reshape(count, rows, -1) for part in parts], dim=2)
            acted = act(block, joined).split(block.columns, dim=2)
            for name, part in zip(block.names, acted, strict=True):
                total[self._spans[name]] = part.flatten(1).mT
        return total

    def _product(self, vectors: Tensor) -> Tensor:
        return self._apply(vectors, lambda block, v: block.G @ v @ block.A)

    def block(self, rows: Any, columns: Any = None) -> LinearOperator:
        """A diagonal block, with Kronecker factors again, or that of some rows and some columns."""
        across = select_parameters("rows", rows, self._parameters, self._net)
        down = across
        if columns is not None:
            down = select_parameters("columns", columns, self._parameters, self._net)
        if across != down:
            every = torch.arange(self.shape[0]).to(self.device)
            places = [torch.cat([every[self._spans[n]] for n in side]) for side in (across, down)]
            return WrappedOperator(self, *places)
        kept = [block for block in self.blocks if set(block.names) & set(across)]
        return KroneckerOperator(
            [block.restricted(across) for block in kept], self._parameters, self._net,
            title=self.title, not_covered=self.not_covered,
        )  # fmt: skip

    def diagonal(self, *, budget: int = 256, generator: torch.Generator | int = 0) -> Diagonal:
        """The diagonal, exact without a product; arguments are those of any operator."""
        size, _ = self.shape
        ones = torch.ones(size, 1).to(self.device)
        found = self._apply(ones, lambda k, v: v * torch.outer(k.G.diagonal(), k.A.diagonal()))
        values = found.squeeze(1)
        zeros = torch.zeros_like(values)
        return Diagonal(
            values=values, standard_errors=zeros, half_widths=zeros, is_exact=True, products=0
        )

    @property
    def eigenvalues(self) -> Spectrum:
        """All of them: products of the factors' eigenvalues."""
        every = [torch.outer(g, a).reshape(-1) for (g, _), (a, _) in (k.eigen for k in self.blocks)]
        return Spectrum.of(torch.cat(every))

    def solve(
        self,
        vectors: Any,
        *,
        damping: float = 0.0,
        tolerance: float = 1e-6,
        max_products: int = 1000,
    ) -> Solution:
        """Solve (A + damping I) x = v by the factors' eigenvectors; arguments of any operator."""
        given, size = check_system(self, vectors, damping, tolerance), self.shape[0]
        spectrum = self.eigenvalues
        lowest = spectrum.smallest + damping
        if not damping >= 0 or lowest <= spectrum.zero_threshold:
            raise ValueError(
                f"damping: got {damping} for eigenvalues from {spectrum.smallest:.3g} to "
                f"{spectrum.largest:.3g}, needs a number that keeps all of them above zero"
            )

        def inverse(block: KroneckerBlock, v: Tensor) -> Tensor:
            (g, u), (a, w) = block.eigen
            turned: Tensor = u.mT @ v @ w
            return u @ (turned / (torch.outer(g, a) + damping)) @ w.mT

        columns = given.reshape(size, -1)
        found = self._apply(columns, inverse)
        left = (columns - self._product(found) - damping * found).norm(dim=0).cpu()
        lengths = columns.norm(dim=0).cpu()
        relative = torch.where(lengths > 0, left / lengths, 0.0)
        return Solution(
            values=found.view(given.shape), residuals=relative.view(given.shape[1:]),
            error_bounds=(left / lowest).view(given.shape[1:]),
            converged=bool((relative <= tolerance).all()), method="eigendecomposition",
            products=columns.shape[1],
        )  # fmt: skip

    def describe(self) -> str:
        """A few lines: what it stands for, and what has no rows."""
        lines = [f"K-FAC of the {self.title}, P = {self.shape[0]}, {len(self.blocks)} layers"]
        return "\n".join(
            [*lines, *(f"not covered: {name}: {why}" for name, why in self.not_covered.items())]
        )

    __str__ = describe
    __repr__ = describe
